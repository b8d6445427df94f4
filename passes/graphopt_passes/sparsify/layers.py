"""Which layers may become sparse in a pattern, and why the others stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.pruning import Amount
from graphopt.report import PrunedLayer
from graphopt.rewrite import RefusedError
from graphopt_passes.refit.finite import nonfinite
from graphopt_passes.refit.linear import LINEAR, Linear
from graphopt_passes.refit.moments import MOST_COLUMNS
from graphopt_passes.refit.recurrent import RECURRENT, Layer, Recurrent, fittable

TECHNIQUE = "sparsity"

_WEIGHTED = (*LINEAR, "ConvTranspose", "LSTM", "GRU", "RNN", "Gather")
_LEAST = 1 << 10  # numbers of a weight that is worth a word


def candidates(
    model: Model, found: Iterable[Linear | tuple[ir.Node, str]], run: Run, amount: Amount
) -> tuple[dict[str, Layer], list[PrunedLayer]]:
    """The layers of a model that may be made sparse by name, and the rows of those that may not.

    Args:
        model: only read.
        found: its layers, as :func:`.linear_layers` has them.
        run: knows what is to be kept.
        amount: for its pattern.
    """
    refused, linear = [], set()
    for one in found:
        if isinstance(one, Linear):
            linear.add(one.name)
        else:
            refused.append(PrunedLayer(g.output_name(one[0]), one[0].op_type, TECHNIQUE, reason=one[1]))
    known = fittable(model).items()
    layers = {name: one for name, one in known if name in linear or isinstance(one, Recurrent)}
    refused += _others(model)
    ends = {next(iter(layers), ""), next(reversed(layers), "")} if amount.group else set()
    for name, layer in list(layers.items()):
        if reason := _refusal(layer, run, amount, is_end=name in ends):
            refused.append(PrunedLayer(name, layer.op, TECHNIQUE, numbers_before=layer.size, reason=reason))
            del layers[name]
    return layers, refused


def _others(model: Model) -> Iterator[PrunedLayer]:
    """Rows of nodes with large weights that are none of these layers."""
    main = model.ir.graph
    for node in g.nodes(model.ir):
        if g.is_op(node, *LINEAR) and node.graph is main:
            continue
        known = [tensor for value in node.inputs if (tensor := g.constant(value)) is not None]
        size = sum(tensor.size for tensor in known if tensor.dtype is ir.DataType.FLOAT)
        if node.op_type not in _WEIGHTED or size < _LEAST:
            continue
        if where := "it lies in a subgraph" if node.graph is not main else _unfit(node):
            yield PrunedLayer(g.output_name(node), node.op_type, TECHNIQUE, numbers_before=size, reason=where)


def _unfit(node: ir.Node) -> str:
    """Why a node of the main graph cannot be made sparse; empty for a recurrent layer that can."""
    if not g.is_op(node, *RECURRENT):
        return f"a {node.op_type} is not made sparse"
    try:
        Recurrent.of(node)
    except RefusedError as refused:
        return str(refused)
    return ""


def _refusal(layer: Layer, run: Run, amount: Amount, *, is_end: bool) -> str:
    """Why a layer stays as it is; empty if it need not."""
    if run.keeps(layer.node):
        return "it is to be kept (--keep)"
    if isinstance(layer, Recurrent) and (reason := _unseen(layer)):
        return reason
    if is_end:
        return "the first and the last layer stay dense"
    uneven = [inputs for inputs in layer.weights.values() if amount.group and inputs % amount.group]
    return f"{uneven[0]} inputs of each channel are no multiple of {amount.group}" if uneven else ""


def _unseen(layer: Recurrent) -> str:
    """Why no moments can be had of a recurrent layer, which has no other way; empty if they can."""
    if layer.columns > MOST_COLUMNS:
        return f"it sums over more than {MOST_COLUMNS:,} numbers"
    return nonfinite(value for value in layer.node.inputs if value is not None)
