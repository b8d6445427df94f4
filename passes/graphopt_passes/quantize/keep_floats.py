"""Layers on floats between integers stay on floats.

Behind a DequantizeLinear and before a QuantizeLinear, ONNX Runtime rounds the constant float weight of a
Conv, ConvTranspose or Gemm to 8 bits by itself (its WeightBiasQuantization), with one scale for all of it:
what was left on floats for its accuracy then loses more than on the integers that it was spared. It does so
where the step of the DequantizeLinear is one number, and the bias a constant vector. So the same step is
written once per channel, or the same bias as a matrix of one row; neither changes what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run

# Conversions move past these, so that a layer behind one is as good as next to them.
_PASSED = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")
_ABSORBED = ("Relu", "Clip")
_CHANNELS = 1  # their axis


def keep_floats(model: Model, run: Run) -> None:
    """Change a quantized model in place, so that the runtime quantizes no float layer of it."""
    functions = g.function_graphs(model.ir)
    nodes = [node for graph in g.graphs(model.ir) if graph not in functions for node in graph]
    for node in nodes:
        if g.is_op(node, "Conv", "ConvTranspose") and _is_exposed(node, node):
            _widen_step(model, run, node)
        elif g.is_op(node, "Gemm") and _is_exposed(node, node):
            _widen_bias(model, run, node, 2)
        elif g.is_op(node, "MatMul") and (add := _bias_of(node)) is not None and _is_exposed(node, add):
            _widen_bias(model, run, add, 1 - list(add.inputs).index(node.outputs[0]))


def _is_exposed(first: ir.Node, last: ir.Node) -> bool:
    """Whether the runtime would quantize the weight of a layer; ``last`` adds its bias."""
    weight = g.constant(first.inputs[1])
    if weight is None or weight.dtype is not ir.DataType.FLOAT:
        return False
    return _dequantized(first.inputs[0]) is not None and _is_quantized(last.outputs[0])


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear with one step that a value comes from, unchanged but for its layout."""
    node = value.producer() if value is not None else None
    while g.is_op(node, *_PASSED) and node is not None and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if not g.is_op(node, "DequantizeLinear") or node is None or g.constant(node.inputs[0]) is not None:
        return None
    step = g.constant(node.inputs[1])
    return node if step is not None and step.size == 1 else None


def _is_quantized(value: ir.Value) -> bool:
    """Whether a value is quantized next, by way of what is absorbed first and of what is passed then."""
    reader = _only_reader(value)
    for passed in (_ABSORBED, _PASSED):
        while g.is_op(reader, *passed) and reader is not None:
            reader = _only_reader(reader.outputs[0])
    return g.is_op(reader, "QuantizeLinear")


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _bias_of(product: ir.Node) -> ir.Node | None:
    """The Add of a constant vector that the runtime makes a Gemm of, together with the product before it."""
    add = _only_reader(product.outputs[0])
    if not g.is_op(add, "Add") or add is None:
        return None
    constants = [tensor for value in add.inputs if (tensor := g.constant(value)) is not None]
    return add if constants and len(constants[0].shape) == 1 else None


# What is written instead.


def _widen_step(model: Model, run: Run, layer: ir.Node) -> None:
    """Read a DequantizeLinear of its own, with the step and the zero point once per channel."""
    weight, path = g.constant(layer.inputs[1]), list(_path(layer))
    assert weight is not None
    channels = _channels(layer, weight.shape.numpy())
    if channels == 1 or any(node.op_type != "MaxPool" for node in path[1:]):
        return  # the audit tells
    reader, old = path[-1], _dequantized(layer.inputs[0])
    assert old is not None
    steps = [_repeated(model, run, old, value, channels) for value in old.inputs[1:]]
    new = ir.Node("", "DequantizeLinear", [old.inputs[0], *steps], [ir.AttrInt64("axis", _CHANNELS)])
    new.name = new.outputs[0].name = run.names(model).fresh(f"{old.outputs[0].name}_channels")
    new.outputs[0].type, new.outputs[0].shape = old.outputs[0].type, old.outputs[0].shape
    assert isinstance(old.graph, ir.Graph)
    old.graph.insert_after(old, [new])
    reader.replace_input_with(0, new.outputs[0])
    if g.is_dead(old):
        g.remove(old)


def _path(layer: ir.Node) -> Iterator[ir.Node]:
    """The layer, and what stands between it and its DequantizeLinear, which the last one reads."""
    node: ir.Node | None = layer
    while node is not None and not g.is_op(node, "DequantizeLinear"):
        yield node
        node = node.inputs[0].producer() if node.inputs[0] is not None else None


def _channels(layer: ir.Node, shape: Sequence[int]) -> int:
    """How many channels a layer reads."""
    if layer.op_type == "ConvTranspose":
        return shape[0]
    return shape[1] * int(g.attribute(layer, "group", 1))


def _repeated(model: Model, run: Run, at: ir.Node, value: ir.Value | None, count: int) -> ir.Value:
    data = g.array(value)
    assert data is not None and value is not None
    return run.new_constant(model, at, np.repeat(data.reshape(-1), count), f"{value.name}_channels")


def _widen_bias(model: Model, run: Run, node: ir.Node, index: int) -> None:
    """Add the bias, or zeros, as a matrix of one row."""
    value = node.inputs[index] if index < len(node.inputs) else None
    bias = g.array(value)
    if bias is not None and bias.ndim != 1:
        return
    if bias is None:
        bias = np.zeros(_columns(node), np.float32)
    node.resize_inputs(max(len(node.inputs), index + 1))
    name = (value.name if value is not None else None) or f"{g.output_name(node)}_bias"
    node.replace_input_with(index, run.new_constant(model, node, bias[None], f"{name}_row"))


def _columns(gemm: ir.Node) -> int:
    weight = g.constant(gemm.inputs[1])
    assert weight is not None
    rows, columns = weight.shape.numpy()
    return int(rows if g.attribute(gemm, "transB", 0) else columns)
