"""Lower precision: what a stage that gives up accuracy for speed is handed, and what it gives back.

A stage starts from the exact result, which was verified. It is judged on held-out samples, by a budget, and
by interleaved measurements; where nothing pays, or the budget cannot be kept, it gives no model but the
reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from graphopt.proof.measure import Comparison, compare
from graphopt.runtime.values import Value

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.options import Options
    from graphopt.pipeline import Run
    from graphopt.proof.accuracy import Score
    from graphopt.proof.evaluation import HeldOut
    from graphopt.proof.heldout import Division
    from graphopt.report import LayerReport
    from graphopt.runtime.worker import Worker
    from graphopt.target import Target


@dataclass
class Task:
    """What a stage works on and with.

    Attributes:
        model: the exact result; not to be changed.
        new_run: a fresh record for passes.
        worker: runs models.
        target: where the result will run.
        options: what the user asked for.
        division: the samples that calibrate, and those that judge.
        judge: scores models on the samples that judge.
        scratch: a folder for files that nobody keeps.
        measured: whether latencies can be measured here.
    """

    model: Model
    new_run: Callable[[], Run]
    worker: Worker
    target: Target
    options: Options
    division: Division
    judge: HeldOut
    scratch: Path
    measured: bool
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def write(self, model: Model) -> Path:
        """A file of a model, in the scratch folder."""
        path = self.scratch / f"trial-{next(self._numbers)}" / "model.onnx"
        path.parent.mkdir()
        model.save(path)
        return path

    @cached_property
    def float_path(self) -> Path:
        """A file of the exact result."""
        return self.write(self.model)

    @cached_property
    def workload(self) -> dict[str, Value]:
        """The sample to measure with: the first that calibrates, else the first that judges."""
        return next(itertools.chain(self.division.calibration, self.division.evaluation))

    def compare(self, before: Path, after: Path) -> Comparison:
        """Measure two files interleaved."""
        return compare(
            before,
            after,
            self.workload,
            worker=self.worker,
            target=self.target,
            threads=self.options.threads,
        )

    def progress(self, stage: str, done: int | None = None, total: int | None = None) -> None:
        """Tell the user."""
        self.options.progress(stage, done, total)


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        model: the result; None if the exact one is better.
        reason: how the budget is kept, or why there is no model, in words.
        score: of the result, or of the best attempt; None if there was none.
        layers: what was decided for each layer.
        int8_macs: share of the multiply-accumulates that run on integers; None if not known.
        notes: what else the user should know.
    """

    model: Model | None
    reason: str
    score: Score | None = None
    layers: tuple[LayerReport, ...] = ()
    int8_macs: float | None = None
    notes: tuple[str, ...] = ()


class Lowering(Protocol):
    """A stage, found by its name in the table ``PRECISIONS`` of graphopt_passes."""

    def __call__(self, task: Task) -> Outcome:
        """Lower the precision of ``task.model``."""
