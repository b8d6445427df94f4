"""quantize-dynamic: products with constant weights on integers, activations quantized as they come.

No calibration is needed: each run finds the range of every tensor that it quantizes, over the whole batch.
A product is written in ONNX's own operators,

    DynamicQuantizeLinear → MatMulInteger → Cast → Mul by both scales (→ Add of the bias),

which ONNX Runtime makes one kernel of (DynamicQuantizeMatMul, or MatMulIntegerToFloat behind a tensor that
several products share). LSTM and com.microsoft Attention become the kernels that the runtime has for them.
Weights are symmetric int8 with one scale per output channel.

Embeddings stay: rows of int8 are gathered no faster by an amount that matters. So does Conv, since ONNX
Runtime runs ConvInteger as four operators, which take longer than the float Conv.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from graphopt import graph as g
from graphopt.legacy import as_ir4
from graphopt.pipeline import Pass, Run
from graphopt.runtime.cpu import cpu
from graphopt_passes.exact.raise_opset import raised
from graphopt_passes.quantize.dynamic_nodes import RULE, WAYS, Writer, kind

if TYPE_CHECKING:
    from graphopt.model import Model

_OPSET = 11  # the first with DynamicQuantizeLinear


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Compute MatMul, Gemm, LSTM and Attention with constant weights on integers (lossy).

    Attributes:
        nodes: names of first outputs, separated by spaces: only these nodes; empty for all.
    """

    name: ClassVar[str] = RULE
    exact: ClassVar[bool] = False
    nodes: str = ""

    def apply(self, model: Model, run: Run) -> bool:
        """Quantize what can be; refusals go to the journal."""
        revision = run.journal.revision
        quantize(model, run, self.nodes.split() or None)
        return run.journal.revision > revision


def quantize(model: Model, run: Run, names: Collection[str] | None = None) -> list[str]:
    """Quantize nodes in place; models of an opset below 11 are raised, see :func:`raised`.

    Args:
        model: its main graph and subgraphs are considered, functions are not.
        run: admits each node, and takes refusals.
        names: of the first outputs of the nodes to quantize; ``None`` for all.

    Returns:
        The names of the nodes that were quantized: their first outputs, which keep their names.
    """
    if not candidates(model.ir, names):
        return []
    reason = raised(model, run, _OPSET)
    if reason is not None:
        run.journal.refuse(RULE, "the model", f"it needs opset {_OPSET}, and {reason}")
        return []
    with as_ir4(model, run.journal):
        writer = Writer(model, run, cpu().weight_bits)
        nodes = {g.output_name(node): node for node in candidates(model.ir, names)}
        return [name for name, node in nodes.items() if writer.quantize(node)]


def candidates(model: ir.Model, names: Collection[str] | None = None) -> list[ir.Node]:
    """The nodes that a way to quantize or a reason against it is known for, in the order of their graphs."""
    graphs = (model.graph, *model.graph.subgraphs())
    known = (node for graph in graphs for node in graph if kind(node) in WAYS)
    return [node for node in known if names is None or g.output_name(node) in names]
