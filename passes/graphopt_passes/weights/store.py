"""``--store fp16`` and ``--store bf16``: weights in half precision, within the accuracy budget.

If all of them together miss it, the noise of each alone ranks them, and the fewest of the noisiest stay as
they are with which the rest keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from graphopt.journal import Journal, Rewrite
from graphopt.model import Model
from graphopt.precision import Outcome, Task
from graphopt.report import LayerReport
from graphopt_passes.halve.search import rank, smallest
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.sensitivity import blame, sensitivities
from graphopt_passes.weights.constants import summed_up
from graphopt_passes.weights.judging import Verdict, judged, slower
from graphopt_passes.weights.store_half import HALVES, RULE, Half, store

NONE: frozenset[str] = frozenset()


def fp16(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return _store(task, HALVES["fp16"])


def bf16(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return _store(task, HALVES["bf16"])


def _store(task: Task, half: Half) -> Outcome:
    return _Search(task, half).run()


@dataclass(frozen=True)
class _Stored:
    """A model with weights in half precision, and what was said while they were stored."""

    model: Model
    layers: tuple[LayerReport, ...]
    journal: Journal


@dataclass(frozen=True)
class _Search:
    """One run: all weights, and if they cost too much, all but the fewest that do."""

    task: Task
    half: Half

    def run(self) -> Outcome:
        """The steps."""
        found = self._stored(NONE)
        if not found.layers and self.task.options.precision is not None:
            told = "no float32 weight is left that is worth storing in half precision"
            return Outcome(self.task.model.clone(), told, notes=(told,))
        if not self._names(found):
            why = summed_up(one.reason for one in found.journal.refusals if one.rule == RULE)
            return Outcome(None, why or "no weight is large enough", layers=found.layers)
        verdict = judged(self.task, found.model)
        if verdict.kept:
            return self._timed(found, verdict)
        less, kept = self._within_budget(found)
        if kept is None:
            return Outcome(None, verdict.reason, verdict.score, less.layers)
        return self._timed(less, kept)

    def _stored(self, floats: frozenset[str]) -> _Stored:
        """The model with all weights stored but these."""
        model, run = self.task.model.clone(), self.task.new_run()
        run.journal.left_out = frozenset(Rewrite(RULE, name) for name in floats)
        return _Stored(model, tuple(store(model, run, self.half)), run.journal)

    def _names(self, found: _Stored) -> list[str]:
        stored = self.half.dtype.name.lower()
        return [layer.name for layer in found.layers if layer.precision == stored]

    def _within_budget(self, found: _Stored) -> tuple[_Stored, Verdict | None]:
        """The model with as few weights on float32 as the budget takes, and its verdict.

        It is ``None`` if no weight may be stored: that was not tried, but taken to hold.
        """
        names = self._names(found)
        penalties = sensitivities(self.task, lambda name: self._alone(name, names), names)
        ranked = rank([(name,) for name in names], {(name,): noise for name, noise in penalties.items()})
        verdicts: dict[frozenset[str], Verdict] = {}

        def holds(some: frozenset[str]) -> bool:
            verdicts[some] = judged(self.task, self._stored(some).model)
            return verdicts[some].kept

        floats = smallest(ranked, holds)
        less, before = self._stored(floats), {layer.name: layer for layer in found.layers}
        costly = [_costly(before[name], penalties[name]) for name in names if name in floats]
        return replace(less, layers=(*less.layers, *costly)), verdicts.get(floats)

    def _alone(self, name: str, names: Iterable[str]) -> Draft:
        return Draft(self.task, self._stored(frozenset(names) - {name}).model, frozenset())

    def _timed(self, found: _Stored, verdict: Verdict) -> Outcome:
        """The outcome, once it is measured."""
        if not verdict.unknown and (slow := slower(self.task, found.model)):
            return Outcome(None, f"it is slower: {slow}", verdict.score, found.layers)
        notes = (*found.journal.notes, *verdict.notes)
        return Outcome(found.model, verdict.reason, verdict.score, found.layers, notes=notes)


def _costly(layer: LayerReport, penalty: float) -> LayerReport:
    """A weight that stays for the accuracy that storing it would cost."""
    reason = blame(penalty, "is stored in half precision")
    return replace(layer, precision="float32", bytes_after=layer.bytes_before, reason=reason)
