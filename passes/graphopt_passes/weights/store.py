"""``--store fp16`` and ``--store bf16``: weights in half precision, within the accuracy budget."""

from __future__ import annotations

from graphopt.precision import Outcome, Task
from graphopt_passes.weights.constants import summed_up
from graphopt_passes.weights.judging import judged, slower
from graphopt_passes.weights.store_half import HALVES, RULE, Half
from graphopt_passes.weights.store_half import store as stored


def fp16(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return _store(task, HALVES["fp16"])


def bf16(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return _store(task, HALVES["bf16"])


def _store(task: Task, half: Half) -> Outcome:
    model, run = task.model.clone(), task.new_run()
    layers = tuple(stored(model, run, half))
    if not layers and task.options.precision is not None:
        told = "no float32 weight is left that is worth storing in half precision"
        return Outcome(task.model.clone(), told, notes=(told,))
    if not any(one.precision == half.dtype.name.lower() for one in layers):
        why = summed_up(one.reason for one in run.journal.refusals if one.rule == RULE)
        return Outcome(None, why or "no weight is large enough", layers=layers)
    verdict = judged(task, model)
    if not verdict.kept:
        return Outcome(None, verdict.reason, verdict.score, layers)
    if not verdict.unknown and (found := slower(task, model)):
        return Outcome(None, f"it is slower: {found}", verdict.score, layers)
    return Outcome(model, verdict.reason, verdict.score, layers, notes=(*run.journal.notes, *verdict.notes))
