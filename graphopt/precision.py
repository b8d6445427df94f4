"""Lower precision and pruning: what a stage that gives up accuracy is handed, and what it gives back.

A stage starts from the exact result, which was verified. It is judged on held-out samples, by a budget, and
by interleaved measurements; where nothing pays, or the budget cannot be kept, it gives no model but the
reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from graphopt.errors import WorkerError
from graphopt.legacy import to_ir4
from graphopt.proof.measure import Comparison, compare
from graphopt.samples.batches import stacked

if TYPE_CHECKING:
    from graphopt.activations import Collector
    from graphopt.model import Model
    from graphopt.options import Options
    from graphopt.pipeline import Run
    from graphopt.proof.accuracy import Score
    from graphopt.proof.budget import Budget
    from graphopt.proof.evaluation import HeldOut
    from graphopt.proof.heldout import Division
    from graphopt.report import LayerReport, PrunedLayer
    from graphopt.runtime.worker import Worker
    from graphopt.samples.sampling import Sample
    from graphopt.target import Target


BATCH = 32
LONGEST_S = 0.25  # a workload of which takes longer is not measured: dozens of runs decide


@dataclass(frozen=True)
class Trial:
    """Measurements of two models on all workloads."""

    comparisons: tuple[Comparison, ...]

    @property
    def ratio(self) -> float:
        """How many times faster the second model is: the geometric mean."""
        return math.prod(found.ratio for found in self.comparisons) ** (1 / len(self.comparisons))

    @property
    def pays(self) -> bool:
        """Whether the second model is faster on some workload and slower on none."""
        verdicts = {found.verdict for found in self.comparisons}
        return "faster" in verdicts and "slower" not in verdicts

    @property
    def slower(self) -> bool:
        """Whether the second model is slower on some workload."""
        return any(found.verdict == "slower" for found in self.comparisons)

    def summary(self) -> str:
        """All measurements in words."""
        return "; ".join(found.summary() for found in self.comparisons)


@dataclass
class Task:
    """What a stage works on and with.

    Attributes:
        model: the exact result, or what the stage before made of it; not to be changed.
        new_run: a fresh record for passes.
        worker: runs models.
        target: where the result will run.
        options: what the user asked for.
        budget: what may be lost.
        divided: makes ``division`` when a stage first asks for it, since samples may have to be drawn.
        judging: makes ``judge`` likewise.
        measured: whether latencies can be measured here.
    """

    model: Model
    new_run: Callable[[], Run]
    worker: Worker
    target: Target
    options: Options
    budget: Budget
    divided: Callable[[], Division]
    judging: Callable[[], HeldOut]
    measured: bool

    @cached_property
    def division(self) -> Division:
        """The samples that calibrate, and those that judge."""
        return self.divided()

    @cached_property
    def judge(self) -> HeldOut:
        """Scores models on the samples that judge."""
        return self.judging()

    @cached_property
    def collector(self) -> Collector:
        """Gathers statistics of activations, within the memory that the user allows."""
        from graphopt.activations import Collector

        options = self.options
        return Collector(self.worker, self.target, options.threads, options.calibration_memory, self.progress)

    def new_model(self) -> Model:
        """A copy of ``model`` to be changed, whose weights are constants."""
        model = self.model.clone()
        to_ir4(model)
        return model

    def write(self, model: Model) -> Path:
        """A file of a model that nobody keeps."""
        return self.worker.pool.write(model)

    @cached_property
    def float_path(self) -> Path:
        """A file of ``model``."""
        return self.write(self.model)

    @cached_property
    def workloads(self) -> list[Sample]:
        """What to measure with: the first sample, and many in one batch where that dim is dynamic."""
        calibration = self.division.calibration
        first = calibration.workload() if self.division.calibration_count else None
        if first is None:
            first = next(iter(self.division.evaluation))
        others = () if calibration.is_synthetic else calibration
        batch = stacked(self.model.ir, itertools.chain([first], others), BATCH)
        return [first, batch] if batch is not None and self._seconds(batch) < LONGEST_S else [first]

    def _seconds(self, sample: Sample) -> float:
        """The time of one run of the exact result; infinite if it does not run."""
        try:
            with self.worker.opened(self.float_path, self.target, self.options.threads) as session:
                return min(self.worker.time([session], sample, budget_s=0.0)[0])
        except WorkerError:
            return math.inf

    def compare(self, before: Path, after: Path) -> Trial:
        """Measure two files interleaved, on each workload."""
        how = partial(compare, worker=self.worker, target=self.target, threads=self.options.threads)
        return Trial(tuple(how(before, after, sample) for sample in self.workloads))

    def progress(self, stage: str, done: int | None = None, total: int | None = None) -> None:
        """Tell the user."""
        self.options.progress(stage, done, total)


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        model: the result; None if the one before is better.
        reason: how the budget is kept, or why there is no model, in words.
        score: of the result, or of the best attempt; None if there was none.
        layers: what was decided for each layer about its precision.
        int8_macs: share of the multiply-accumulates in lower precision; None if not known.
        notes: what else the user should know.
        pruned: what was decided for each layer about what is removed.
    """

    model: Model | None
    reason: str
    score: Score | None = None
    layers: tuple[LayerReport, ...] = ()
    int8_macs: float | None = None
    notes: tuple[str, ...] = ()
    pruned: tuple[PrunedLayer, ...] = ()


class Lowering(Protocol):
    """A stage, found by its name in ``PRUNINGS``, ``PRECISIONS`` or ``STORES`` of graphopt_passes."""

    def __call__(self, task: Task) -> Outcome:
        """Remove something from ``task.model``, or lower its precision."""
