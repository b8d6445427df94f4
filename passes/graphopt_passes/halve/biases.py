"""Biases of int32 as floats: kernels of integers would add them, and where these are none they only cost.

    DequantizeLinear(q, s)  →  q·s

Their scale is the product of two others, often so small that float16 has few digits for it; what it stands
for is not. As halves they take half of the room that they took.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Run
from graphopt_passes.exact.eliminate_dead_code import remove_dead

if TYPE_CHECKING:
    from graphopt.model import Model

RULE = "dequantize-biases"


def dequantize_biases(model: Model, run: Run) -> None:
    """Replace what dequantizes a constant of int32 without a zero point, in place."""
    for node in list(g.nodes(model.ir)):
        if (
            g.is_op(node, "DequantizeLinear")
            and not run.keeps(node)
            and not node.outputs[0].is_graph_output()
        ):
            _replace(node, model, run)


def _replace(node: ir.Node, model: Model, run: Run) -> None:
    data, scale = (g.array(value) for value in node.inputs[:2])
    zero = g.array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if data is None or scale is None or zero is None or data.dtype != np.int32 or zero.any():
        return
    if scale.dtype != np.float32 or not (scale.size == 1 or data.shape == scale.shape):
        return
    name = g.output_name(node)
    if run.journal.admit(RULE, name):
        real = np.asarray(data.astype(np.float32) * scale.reshape(() if scale.size == 1 else -1))
        g.replace(node.outputs[0], run.new_constant(model, node, real, f"{name}_real"))
        remove_dead(node, run)
