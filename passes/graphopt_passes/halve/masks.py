"""Masks of attention, such as −1e9 or the least float: in half they would be −∞, and a row of −∞ is NaN.

What is added in front of a Softmax only has to be so small that exp gives 0, which −8188 in float16 does as
well. So such constants are raised to an eighth of the least number of the half type: as long as only Softmax
sees the result, and three of them still add up without an overflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.activations import Statistics
from graphopt.pipeline import Run
from graphopt.runtime.accumulators import Extent
from graphopt_passes.halve.limits import limits
from graphopt_passes.halve.signatures import TENSOR
from graphopt_passes.halve.types import Types

if TYPE_CHECKING:
    from graphopt.model import Model

RULE = "soften-masks"
_SHARE = 8
_LARGEST = 1 << 24  # elements of a mask
_CARRIERS = (
    "Add", "Where", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Slice", "Tile"
)  # fmt: skip


def soften(model: Model, run: Run, half: str, statistics: Statistics) -> list[str]:
    """Raise masks that a half type cannot hold, in place.

    Args:
        model: a float model.
        run: makes the new constants.
        half: ``float16`` or ``bfloat16``.
        statistics: extents, which tell of what is multiplied with a mask that it is at most 1.

    Returns:
        What was raised, in words.
    """
    least = -limits(half).largest / _SHARE
    types, told = Types(model.ir), []
    for value in [v for graph in g.graphs(model.ir) for v in g.defined(graph) if types.of(v) == TENSOR]:
        data = g.array(value, limit=_LARGEST)
        if data is None or not data.size or not _is_mask(data, limits(half).largest):
            continue
        uses = [use for use in value.uses() if _only_masks(use.node, value, statistics, types)]
        if not uses:
            continue
        raised = np.asarray(np.maximum(data, np.float32(least)))
        new = run.new_constant(model, uses[0].node, raised, f"{value.name}_mask")
        for use in uses:
            use.node.replace_input_with(use.idx, new)
        run.journal.admit(RULE, new.name or "")
        told.append(f"{data.min():.3g} in front of a Softmax became {least:.5g}, which {half} holds")
    return list(dict.fromkeys(told))


def _is_mask(data: np.ndarray[tuple[int, ...], np.dtype[np.float32]], largest: float) -> bool:
    finite = data[np.isfinite(data)]
    return bool(finite.size and finite.min() < -largest and finite.max() <= largest)


def _only_masks(node: ir.Node, mask: ir.Value, statistics: Statistics, types: Types) -> bool:
    """Whether only Softmax sees what becomes of the mask here."""
    if g.is_op(node, "Mul"):
        other = node.inputs[1] if node.inputs[0] is mask else node.inputs[0]
        if other is None or not _is_at_most_one(other, statistics):
            return False
    elif not g.is_op(node, *_CARRIERS):
        return False
    return all(_reaches_softmax(value, types) for value in node.outputs)


def _is_at_most_one(value: ir.Value, statistics: Statistics) -> bool:
    found = statistics.get(value.name or "", Extent())
    return found is not None and 0 <= float(found.low[0]) <= float(found.high[0]) <= 1


def _reaches_softmax(value: ir.Value, types: Types) -> bool:
    uses = list(value.uses())
    if not uses or value.is_graph_output() or types.of(value) != TENSOR:
        return False
    return all(g.is_op(use.node, "Softmax") or _carries(use.node, types) for use in uses)


def _carries(node: ir.Node, types: Types) -> bool:
    return g.is_op(node, *_CARRIERS) and all(_reaches_softmax(output, types) for output in node.outputs)
