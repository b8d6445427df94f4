"""Tries of one model with different nodes in half, judged by what rounding does to its outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.precision import Task
from graphopt.proof.accuracy import Score
from graphopt.proof.evaluation import HeldOut
from graphopt.target import REFERENCE
from graphopt_passes.halve.convert import Halved, halve
from graphopt_passes.halve.weights import Weights
from graphopt_passes.quantize.sensitivity import SAMPLES, noise

# Less than half of such an output is noise. One that has become all zeros has 0 dB, NaN and infinity −∞.
_LEAST_SOUND_DB = 3.0
Found = TypeVar("Found")


@dataclass(frozen=True)
class Judged:
    """What came of keeping some nodes float.

    Attributes:
        kept: those that had to stay float.
        halved: what became half.
        score: of the outputs with all halves rounded.
        holds: whether the budget is kept.
        reason: how, or why not.
    """

    kept: frozenset[str]
    halved: Halved
    score: Score
    holds: bool
    reason: str


@dataclass
class Trials:
    """Makes and judges them.

    Attributes:
        task: what to work with.
        model: the float model; not changed.
        half: ``float16`` or ``bfloat16``.
        sizes: elements of its values.
        keep_io: whether inputs and outputs stay float; what is judged rounds them if not.
        weights: converted so far.
    """

    task: Task
    model: Model
    half: str
    sizes: Mapping[str, float]
    keep_io: bool = True
    weights: Weights = field(init=False)

    def __post_init__(self) -> None:
        self.weights = Weights(self.half, self.task.new_run().spill)

    def build(self, kept: Collection[str]) -> tuple[Model, Halved, Run]:
        """The model in half."""
        model, run = self.model.clone(), self.task.new_run()
        halved = halve(model, run, self.half, kept, **self._how)
        return model, halved, run

    def judged(self, kept: Collection[str]) -> Judged:
        """Judge on the held-out samples, every half value rounded."""
        halved, score = self._rounded(kept, self._judge.score)
        return Judged(frozenset(kept), halved, score, *self._verdict(score, self._judge.reference))

    def executed(self, judged: Judged, path: Path) -> Judged:
        """Judge the result itself, a file that takes and gives floats, as the target runs it here."""
        score = self.task.judge.score(path)
        holds, reason = self._verdict(score, self.task.judge.reference)
        return replace(judged, score=score, holds=holds, reason=reason)

    def noise(self, kept: Collection[str]) -> float:
        """Noise power over signal power on the first samples, every half value rounded."""
        return self._rounded(kept, lambda path: noise(self._quick.score(path)))[1]

    def _verdict(self, score: Score, reference: Score) -> tuple[bool, str]:
        """Whether the budget is kept, and how or why not."""
        lost = _lost(score)
        return (False, lost) if lost else self.task.budget.holds(score, reference)

    def _rounded(self, kept: Collection[str], use: Callable[..., Found]) -> tuple[Halved, Found]:
        model, run = self.model.clone(), self.task.new_run()
        halved = halve(model, run, self.half, kept, emulate=True, **self._how)
        path = self.task.write(model)
        found = use(path)
        path.unlink()
        return halved, found

    @property
    def _how(self) -> dict[str, Any]:
        return {"keep_io": self.keep_io, "sizes": self.sizes, "weights": self.weights}

    @cached_property
    def _judge(self) -> HeldOut:
        """As users judge, but with nothing rewritten: optimizers drop the Casts that round."""
        return replace(self.task.judge, target=REFERENCE)

    @cached_property
    def _quick(self) -> HeldOut:
        task = self.task
        samples = task.division.calibration if task.division.calibration_count else task.division.evaluation
        judge = HeldOut(task.worker, task.float_path, samples, None, REFERENCE, task.options.threads)
        return judge.first(SAMPLES)


def _lost(score: Score) -> str:
    """Says so if an output is noise, zeros, NaN or infinity, which a metric may not see."""
    for output in score.outputs:
        if output.sqnr_db is not None and output.sqnr_db < _LEAST_SOUND_DB:
            return f"'{output.name}' is lost: {output.sqnr_db:.1f} dB"
    return ""
