"""Hands an exact result to what lowers its precision: which samples calibrate, which judge, what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import WorkerError
from graphopt.pipeline import Run
from graphopt.precision import Outcome, Task
from graphopt.proof.evaluation import HeldOut
from graphopt.proof.heldout import divide, gather
from graphopt.report import AccuracyReport
from graphopt.samples.inputs import inputs_of
from graphopt.storage.spill import Spill

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.options import Options
    from graphopt.precision import Lowering
    from graphopt.proof.heldout import Division
    from graphopt.runtime.worker import Worker
    from graphopt.samples.sampling import Sample
    from graphopt.target import Target


@dataclass(frozen=True)
class Lowerer:
    """Lowers the precision of exact results of one model.

    Attributes:
        original: the model; it is what results are compared with.
        original_path: its file.
        worker: runs models.
        target: what the result is for.
        here: where it can run on this machine.
        options: what the user asked for.
        measured: whether latencies can be measured here.
    """

    original: Model
    original_path: Path
    worker: Worker
    target: Target
    here: Target
    options: Options
    measured: bool

    def lower(self, model: Model, stage: Lowering) -> tuple[Outcome, AccuracyReport | None]:
        """What one stage makes of a result, and what that costs in accuracy if it was judged.

        Raises:
            DataError: the samples do not fit the model, or overlap.
            UsageError: the budget needs a metric, and there is none.
        """
        if reason := self._unrunnable:
            return Outcome(None, reason), None
        task = self._task(model)
        outcome = stage(task)
        return outcome, self._accuracy(task, outcome)

    def _task(self, model: Model) -> Task:
        spill = Spill()  # one for all runs: what several models share is stored once
        return Task(
            model,
            lambda: Run(self.target, self.worker, keep=frozenset(self.options.keep), spill=spill),
            self.worker,
            self.here,
            self.options,
            lambda: self._division,
            lambda: self._judge,
            self.measured,
        )

    @cached_property
    def _judge(self) -> HeldOut:
        return HeldOut(
            self.worker,
            self.original_path,
            self._division.evaluation,
            self._division.metric,
            self.here,
            self.options.threads,
            progress=self.options.progress,
        )

    @cached_property
    def _division(self) -> Division:
        options, graph = self.options, self.original.ir
        samples = gather(graph, options.data, options.shapes, options.seed, options.calibration_limit)
        samples.fit(self._runs)
        specs = inputs_of(graph)
        calibrate = options.calibrates
        division = divide(samples, options.eval, specs, calibrate=calibrate, progress=options.progress)
        options.budget.require_metric(division.metric is not None)
        return division

    @cached_property
    def _unrunnable(self) -> str:
        """Why nothing can be judged here; empty if it can, need not be, or the model is too large to run."""
        try:
            if self.options.verify:
                self.worker.close(self.worker.open(self.original_path, self.here, self.options.threads))
        except WorkerError as error:
            return "" if error.reason == "memory" else f"ONNX Runtime cannot load the original here: {error}"
        return ""

    def _runs(self, sample: Sample) -> bool:
        """Whether the original runs on a sample."""
        try:
            with self.worker.opened(self.original_path, self.here, self.options.threads) as session:
                self.worker.run(session, sample)
        except WorkerError:
            return False
        return True

    def _accuracy(self, task: Task, outcome: Outcome) -> AccuracyReport | None:
        if outcome.score is None:
            return None
        division = task.division
        achieved, reason = self.options.budget.holds(outcome.score, task.judge.reference)
        return AccuracyReport(
            task.judge.reference,
            outcome.score,
            str(self.options.budget),
            achieved and outcome.model is not None,
            reason if outcome.model is not None else outcome.reason,
            division.evidence,
            division.calibration_count,
            division.evaluation_count,
            division.calibration.is_synthetic,
            outcome.int8_macs,
        )
