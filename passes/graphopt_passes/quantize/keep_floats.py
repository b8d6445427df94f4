"""Layers on floats between integers stay on floats.

Behind a DequantizeLinear and before a QuantizeLinear, ONNX Runtime rounds the float weight of a Conv,
ConvTranspose or Gemm to 8 bits by itself (its WeightBiasQuantization), with one scale for all of it: what was
left on floats for its accuracy then loses more than on the integers that it was spared. It does so where the
step of the DequantizeLinear is one number, and the bias a stored vector or none. So the same step is written
once per channel, or the same bias as a matrix of one row, which is cheaper before a product; neither changes
what is computed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.shapes.inference import Shapes

# Conversions move past these, so that a layer behind one is as good as next to them.
_PASSED = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")
_ABSORBED = ("Relu", "Clip")
_MATRIX = 2  # dims


def keep_floats(model: Model, run: Run, quantized: Collection[ir.Value]) -> None:
    """Change a quantized model in place, so that the runtime quantizes no float layer of it.

    Args:
        model: with its QuantizeLinear and DequantizeLinear nodes.
        run: makes constants.
        quantized: integers that were put into the model; layers between others were there before, and stay.
    """
    writer = _Writer(model, run, run.shapes(model))
    for layer in list(_layers(model)):
        if layer.is_exposed(quantized):
            writer.keep(layer)


@dataclass(frozen=True)
class _Layer:
    """A layer.

    Attributes:
        node: multiplies with the weight.
        last: adds the bias: the same node, or the Add behind a MatMul, of which the runtime makes a Gemm.
        bias: where the bias is among the inputs of ``last``.
    """

    node: ir.Node
    last: ir.Node
    bias: int = 2

    @classmethod
    def of(cls, node: ir.Node) -> _Layer | None:
        """Read a node; ``None`` if it is no such layer, or its weight is not stored as floats."""
        weight = _stored(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is None or weight.dtype is not ir.DataType.FLOAT:
            return None
        if g.is_op(node, "Conv", "ConvTranspose", "Gemm"):
            return cls(node, node)
        add = _only_reader(node.outputs[0]) if g.is_op(node, "MatMul") else None
        if add is None or not g.is_op(add, "Add"):
            return None
        return cls(node, add, 1 - list(add.inputs).index(node.outputs[0]))

    @property
    def addend(self) -> ir.Value | None:
        """Its bias."""
        return self.last.inputs[self.bias] if self.bias < len(self.last.inputs) else None

    def is_exposed(self, quantized: Collection[ir.Value]) -> bool:
        """Whether the runtime would quantize its weight, because of these integers."""
        bias = _stored(self.addend)
        if self.addend is not None and (bias is None or len(bias.shape) != 1):
            return False
        before, behind = _dequantizer(self.node), _quantizer(self.last.outputs[0])
        if before is None or behind is None or before.graph is not self.node.graph:
            return False
        return before.inputs[0] in quantized or behind.outputs[0] in quantized


def _layers(model: Model) -> Iterator[_Layer]:
    functions = g.function_graphs(model.ir)
    for graph in g.graphs(model.ir):
        if graph not in functions:
            yield from (layer for layer in map(_Layer.of, graph) if layer is not None)


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant, or of an initializer that callers may override: the runtime rounds both."""
    return None if value is None else g.constant(value) or value.const_value


def _dequantizer(layer: ir.Node) -> ir.Node | None:
    """The DequantizeLinear with one step that a layer's input comes from, unchanged but for its layout."""
    *_, node = _path(layer)
    if not g.is_op(node, "DequantizeLinear") or g.constant(node.inputs[0]) is not None:
        return None
    grid = [g.constant(value) for value in node.inputs[1:] if value is not None]
    return node if all(one is not None and one.size == 1 for one in grid) else None


def _path(layer: ir.Node) -> Iterator[ir.Node]:
    """The layer and what makes its input, up to the first node that conversions do not move past."""
    node: ir.Node | None = layer
    while node is not None:
        yield node
        if node is not layer and not g.is_op(node, *_PASSED):
            return
        node = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None


def _quantizer(value: ir.Value) -> ir.Node | None:
    """What quantizes a value next, by way of what is absorbed first and of what is passed then."""
    reader = _only_reader(value)
    while reader is not None and g.is_op(reader, *_ABSORBED):
        value = reader.outputs[0]
        reader = _only_reader(value)
    while reader is not None and g.is_op(reader, *_PASSED) and not value.is_graph_output():
        value = reader.outputs[0]
        reader = _only_reader(value)
    return reader if g.is_op(reader, "QuantizeLinear") else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value; that it is an output as well does not count for the runtime."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 else None


@dataclass(frozen=True)
class _Writer:
    model: Model
    run: Run
    shapes: Shapes

    def keep(self, layer: _Layer) -> None:
        """Write one of the two; a layer of which nothing is known stays as it is, and the audit tells."""
        product = g.is_op(layer.node, "Gemm", "MatMul")
        matrix = (self.shapes.rank(layer.node.outputs[0]) or 0) >= _MATRIX
        fixed = layer.addend is None or g.constant(layer.addend) is not None
        if product and matrix and fixed and not self.run.keeps(layer.last):
            self._add_row(layer)
        else:
            self._repeat_step(layer)

    def _add_row(self, layer: _Layer) -> None:
        """Add the bias, or zeros, as a matrix of one row."""
        last, bias = layer.last, g.array(layer.addend)
        name = layer.addend.name if layer.addend is not None else f"{g.output_name(last)}_bias"
        row = np.zeros(1, np.float32) if bias is None else bias
        last.resize_inputs(max(len(last.inputs), layer.bias + 1))
        last.replace_input_with(layer.bias, self._constant(last, row[None], f"{name}_row"))

    def _repeat_step(self, layer: _Layer) -> None:
        """Read a DequantizeLinear of its own, with the step and the zero point once per channel."""
        *readers, old = _path(layer.node)
        axis, size = self._axis(readers, old)
        if size == 1:
            return
        grid = [self._repeated(old, value, size) for value in old.inputs[1:] if value is not None]
        new = ir.Node("", "DequantizeLinear", [old.inputs[0], *grid], [ir.AttrInt64("axis", axis)])
        back = new.outputs[0]
        new.name = back.name = self.run.names(self.model).fresh(f"{old.outputs[0].name}_channels")
        back.type, back.shape = old.outputs[0].type, old.outputs[0].shape
        assert isinstance(old.graph, ir.Graph)
        old.graph.insert_after(old, [new])
        readers[-1].replace_input_with(0, back)
        if g.is_dead(old):
            g.remove(old)

    def _axis(self, readers: list[ir.Node], old: ir.Node) -> tuple[int, int]:
        """An axis of what is dequantized, and its size: channels if possible, which lie together."""
        layer, *between = readers
        weight = _stored(layer.inputs[1])
        pooled = all(node.op_type == "MaxPool" for node in between)
        if g.is_op(layer, "Conv", "ConvTranspose") and pooled and weight is not None:
            shape, groups = weight.shape.numpy(), int(g.attribute(layer, "group", 1))
            size = shape[0] if layer.op_type == "ConvTranspose" else shape[1] * groups
            if size > 1:
                return 1, size
        dims = dict(enumerate(self.shapes.dims(old.outputs[0]) or ()))
        known = {axis: dim for axis, dim in dims.items() if isinstance(dim, int) and dim > 1}
        return min(known.items(), key=lambda one: (one[0] != 1, one[0]), default=(0, 1))

    def _repeated(self, at: ir.Node, value: ir.Value, count: int) -> ir.Value:
        data = g.array(value)
        assert data is not None
        return self._constant(at, np.repeat(data.reshape(-1), count), f"{value.name}_channels")

    def _constant(self, at: ir.Node, data: np.ndarray, name: str) -> ir.Value:
        return self.run.new_constant(self.model, at, data, name)
