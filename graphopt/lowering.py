"""Hands a result to a stage that may change it: which samples calibrate, which judge, what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import WorkerError
from graphopt.pipeline import Run
from graphopt.precision import Outcome, Task
from graphopt.proof.budget import Budget
from graphopt.proof.evaluation import HeldOut
from graphopt.proof.heldout import divide, gather
from graphopt.report import AccuracyReport
from graphopt.samples.inputs import inputs_of
from graphopt.storage.spill import Spill

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.options import Options
    from graphopt.precision import Lowering
    from graphopt.proof.accuracy import Score
    from graphopt.proof.heldout import Division
    from graphopt.runtime.worker import Session, Worker
    from graphopt.samples.sampling import Sample
    from graphopt.target import Target


@dataclass(frozen=True)
class Lowerer:
    """Hands results of one model to stages.

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
    _judges: dict[Path, HeldOut] = field(default_factory=dict, init=False)

    def lower(
        self, model: Model, stage: Lowering, budget: Budget, beside: Path | None = None
    ) -> tuple[Outcome, AccuracyReport | None]:
        """What one stage makes of a result, and what that costs in accuracy if it was judged.

        Args:
            model: the result so far.
            stage: what to do.
            budget: what may be lost.
            beside: a file of the model to judge beside; None for the original.

        Raises:
            DataError: the samples do not fit the model, or overlap.
            UsageError: the budget needs a metric, and there is none.
        """
        if reason := self._unrunnable:
            return Outcome(None, reason), None
        task = self._task(model, budget, beside or self.original_path)
        outcome = stage(task)
        if outcome.score is None:
            return outcome, None
        refused = None if outcome.model is not None else outcome.reason
        return outcome, self._accuracy(task.judge, outcome.score, budget, outcome.int8_macs, refused)

    def cost(self, model: Model) -> AccuracyReport:
        """What all stages together cost beside the original."""
        judge = self._judge(self.original_path)
        with self.worker.pool.written(model) as path:
            return self._accuracy(judge, judge.score(path), Budget.unbounded(), None, None)

    def _task(self, model: Model, budget: Budget, beside: Path) -> Task:
        spill = Spill()  # one for all runs: what several models share is stored once
        return Task(
            model,
            lambda: Run(self.target, self.worker, keep=frozenset(self.options.keep), spill=spill),
            self.worker,
            self.here,
            self.options,
            budget,
            lambda: self._division,
            lambda: self._judge(beside),
            self.measured,
        )

    def _judge(self, beside: Path) -> HeldOut:
        if beside not in self._judges:
            self._judges[beside] = HeldOut(
                self.worker,
                beside,
                self._division.evaluation,
                self._division.metric,
                self.here,
                self.options.threads,
                progress=self.options.progress,
            )
        return self._judges[beside]

    @cached_property
    def _division(self) -> Division:
        options, graph = self.options, self.original.ir
        samples = gather(graph, options.data, options.shapes, options.seed, options.calibration_limit)
        specs, calibrate = inputs_of(graph), options.calibrates
        with self._trying() as runs:
            samples.fit(runs)
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

    @contextmanager
    def _trying(self) -> Iterator[Callable[[Sample], bool]]:
        """What says whether the original runs on a sample, in one session, made when it is first asked."""
        sessions: list[Session] = []

        def runs(sample: Sample) -> bool:
            try:
                if not sessions:
                    sessions.append(self.worker.open(self.original_path, self.here, self.options.threads))
                self.worker.run(sessions[0], sample)
            except WorkerError:
                return False
            return True

        yield runs
        for session in sessions:
            self.worker.close(session)

    def _accuracy(
        self, judge: HeldOut, score: Score, budget: Budget, int8_macs: float | None, refused: str | None
    ) -> AccuracyReport:
        division = self._division
        achieved, reason = budget.holds(score, judge.reference)
        return AccuracyReport(
            judge.reference,
            score,
            str(budget),
            achieved and refused is None,
            reason if refused is None else refused,
            division.evidence,
            division.calibration_count,
            division.evaluation_count,
            division.calibration.is_synthetic,
            int8_macs,
        )
