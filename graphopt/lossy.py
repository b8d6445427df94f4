"""Walks the stages that may change what a model computes, and reports what each achieved.

What was asked for without a budget is done and its cost told; the stages behind it are judged beside its
result, for they are not to blame for that cost. So the report tells in the end what all of them cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from graphopt.candidates import Candidate
from graphopt.errors import ParityError
from graphopt.lowering import Lowerer
from graphopt.report import AccuracyReport, LayerReport, PrunedLayer

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.case import Case
    from graphopt.precision import Outcome
    from graphopt.stages import Stage


@dataclass
class Lossy:
    """The stages of one run.

    Attributes:
        case: what the steps of the run share.
        beside: the file that the next stage is judged beside; None for the original.
        owed: whether the last stage that was kept was judged beside something else than the original.
    """

    case: Case
    beside: Path | None = None
    owed: bool = False

    def walk(self, candidate: Candidate, stages: Iterable[Stage]) -> Candidate:
        """What the stages make of a candidate.

        Raises:
            ParityError: one does not achieve what it was asked for, and the run is strict.
            DataError: the samples do not fit the model, or overlap.
            UsageError: the budget needs a metric, and there is none.
        """
        for stage in stages:
            candidate = self._lower(candidate, stage)
        if self.owed:
            self._settle_accuracy(candidate)
        return candidate

    def _settle_accuracy(self, candidate: Candidate) -> None:
        """Tell what all stages cost beside the original."""
        self.case.begin("judging")
        report = self.case.report
        share = report.accuracy.int8_macs if report.accuracy is not None else None
        report.accuracy = replace(self._lowerer.cost(candidate.model), int8_macs=share)

    def _lower(self, candidate: Candidate, stage: Stage) -> Candidate:
        """The candidate after a stage, or as it is, with the reason."""
        self.case.begin(stage.doing)
        outcome, accuracy = self._lowerer.lower(candidate.model, stage.lower, stage.budget, self.beside)
        self.case.report.notes += outcome.notes
        if outcome.model is None:
            self._tell(_undone(outcome, "nothing of it was kept"), accuracy, kept=False)
            return self._not_done(candidate, stage, outcome.reason)
        lowered = Candidate(outcome.model, candidate.journal)
        if reason := self._slower(lowered):
            lowered.discard()
            told = accuracy and replace(accuracy, achieved=False, reason=reason)
            self._tell(_undone(outcome, "the whole is slower than the original"), told, kept=False)
            return self._not_done(candidate, stage, reason)
        self._tell(outcome, accuracy, kept=True)
        if self.beside is not None and accuracy is not None:
            self.case.report.notes.append(f"{stage.title}, beside the pruned model: {accuracy.reason}")
        self._judge_beside(lowered, stage)
        candidate.discard()
        return lowered

    def _slower(self, lowered: Candidate) -> str:
        """Why a result is not kept: measurements that say that it is slower; empty if it is not."""
        case = self.case
        if not (case.options.measure and case.runnable):
            return ""
        if case.options.convert_io:
            case.report.notes.append("latency is not measured with inputs of another type than the samples'")
            return ""
        case.begin("measuring")
        comparison = case.compare(case.original_path, lowered)
        if comparison.verdict == "slower":
            return f"the result is slower than the original: {comparison.summary()}"
        case.report.comparison = comparison
        return ""

    def _judge_beside(self, lowered: Candidate, stage: Stage) -> None:
        """From here on judge beside what was done at any cost."""
        self.owed = self.beside is not None
        if not stage.budget.is_bounded:
            self.beside = self.case.worker.pool.write(lowered.model)

    def _tell(self, outcome: Outcome, accuracy: AccuracyReport | None, kept: bool) -> None:
        """Report a stage; what an earlier one achieved is not replaced by what this one did not."""
        report = self.case.report
        report.layers += outcome.layers
        report.pruned += outcome.pruned
        if accuracy is not None and (kept or report.accuracy is None):
            report.accuracy = accuracy

    def _not_done(self, candidate: Candidate, stage: Stage, reason: str) -> Candidate:
        if self.case.options.strict:
            raise ParityError(f"{stage.title} is not achieved, so --strict writes nothing: {reason}")
        self.case.report.notes.append(f"{stage.title} not achieved, the model stays as it is: {reason}")
        return candidate

    @cached_property
    def _lowerer(self) -> Lowerer:
        case = self.case
        return Lowerer(
            case.original,
            case.original_path,
            case.worker,
            case.target,
            case.here,
            case.options,
            case.options.measure and case.runnable,
        )


def _undone(outcome: Outcome, why: str) -> Outcome:
    """What is told of layers that are not changed in the result."""
    layers = tuple(_as_it_was(layer, why) for layer in outcome.layers)
    pruned = tuple(_unpruned(layer, why) for layer in outcome.pruned)
    return replace(outcome, layers=layers, pruned=pruned)


def _as_it_was(layer: LayerReport, why: str) -> LayerReport:
    if layer.precision == "float32":
        return layer
    return replace(
        layer,
        precision="float32",
        fused=None,
        bytes_after=layer.bytes_before,
        reason=layer.reason or why,
    )


def _unpruned(layer: PrunedLayer, why: str) -> PrunedLayer:
    if not layer.kept:
        return layer
    return replace(
        layer,
        kept="",
        numbers_after=layer.numbers_before,
        macs_after=layer.macs_before,
        ms_after=layer.ms_before,
        reason=layer.reason or why,
    )
