"""What calibration could not place may still pay with activations that are quantized as they come.

LSTMs have only such a kernel; products whose ranges are not known, or whose static form did not pay, may gain
by it. What is added is measured against the model without it.
"""

from __future__ import annotations

from pathlib import Path

from graphopt import graph as g
from graphopt.model import Model
from graphopt.precision import Task
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.dynamic import candidates, quantize
from graphopt_passes.quantize.frontier import Judged

# Small products gain little by it and lose accuracy; a recurrent layer multiplies in every step.
_KINDS = ("LSTM", "Attention", "MatMul", "Gemm")


def with_dynamic(task: Task, model: Model, path: Path, before: Judged | None) -> Judged | None:
    """A model with more nodes on integers that is faster and keeps the budget; ``None`` if there is none.

    Args:
        task: what to work with.
        model: a quantized or a float model; not changed.
        path: its file.
        before: how it was judged; None for the float model.
    """
    for kinds in (_KINDS, _KINDS[:2]):
        draft = _draft(task, model, kinds, before)
        if draft is None:
            return None
        if task.compare(path, draft.path).pays:
            judged = Judged.of(task, draft)
            if judged.kept:
                return judged
        draft.discard()
    return None


def _draft(task: Task, model: Model, kinds: tuple[str, ...], before: Judged | None) -> Draft | None:
    copy = model.clone()
    names = [g.output_name(node) for node in candidates(copy.ir) if node.op_type in kinds]
    added = quantize(copy, task.new_run(), names)
    static = before.draft.nodes if before is not None else frozenset[str]()
    return Draft(task, copy, static | frozenset(added), frozenset(added)) if added else None
