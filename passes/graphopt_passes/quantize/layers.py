"""A Conv, Gemm or MatMul with a constant weight, seen as one matrix per group, whose channels can be scaled.

Steps that move scales between neighbours (:mod:`equalize <graphopt_passes.quantize.equalize>`, :mod:`smooth
<graphopt_passes.quantize.smooth>`) ask it for the range of every channel and give it one factor per channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.rewrite import RefusedError
from graphopt_passes.quantize.scheme import Array

LINEAR = ("Conv", "Gemm", "MatMul")
_BLOCK = 1 << 20  # elements
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Layer:
    """A linear node and its weight.

    Attributes:
        node: Conv, Gemm or MatMul; its input is input 0.
        channels: of the output.
        inputs: channels of the input, of all groups.
        groups: of a Conv, else 1.
    """

    node: ir.Node
    channels: int
    inputs: int
    groups: int = 1

    @classmethod
    def of(cls, node: ir.Node) -> Layer:
        """The node as a layer.

        Raises:
            RefusedError: it is none, or its weight is no constant of its own.
        """
        shape = own_constant(node, 1).shape.numpy()
        if node.op_type == "Conv":
            groups = int(g.attribute(node, "group", 1))
            return cls(node, shape[0], shape[1] * groups, groups)
        if len(shape) != 2 or g.attribute(node, "transA", 0):
            raise RefusedError(f"{g.label(node)} is no product with one matrix on the right")
        columns, channels = shape[::-1] if g.attribute(node, "transB", 0) else shape
        return cls(node, channels, columns)

    def weight(self) -> Array:
        """The weight as it is stored."""
        found = g.array(self.node.inputs[1])
        assert found is not None
        return found

    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight as it is stored."""
        tensor = g.constant(self.node.inputs[1])
        assert tensor is not None
        return tuple(tensor.shape.numpy())

    def matrices(self, weight: Array) -> Array:
        """A view of the weight as [groups, channels/groups, inputs/groups, elements of each]."""
        turned = self.node.op_type != "Conv" and not g.attribute(self.node, "transB", 0)
        stored = weight.T if turned else weight
        return stored.reshape(self.groups, self.channels // self.groups, self.inputs // self.groups, -1)

    def magnitudes(self, channels: bool = True, inputs: bool = True) -> NDArray[np.float64]:
        """The largest |w| between each two channels, [groups, channels/groups, inputs/groups].

        Args:
            channels: else the largest of all channels of a group, [groups, 1, …].
            inputs: else the largest of all inputs of a group, [groups, …, 1].
        """
        view = self.matrices(self.weight())
        parts = [_largest(part, channels, inputs) for part in blocks(view)]
        return np.concatenate(parts, axis=1) if channels else np.maximum.reduce(parts)

    def scale(self, model: Model, run: Run, channels: Array, inputs: Array) -> None:
        """Multiply the weight by a factor per channel and one per input channel; no bias is touched."""
        weight = self.weight()
        scaled = np.empty(weight.shape, weight.dtype)
        factors = channels.reshape(self.groups, -1, 1, 1) * inputs.reshape(self.groups, 1, -1, 1)
        np.multiply(self.matrices(weight), factors, out=self.matrices(scaled), casting="same_kind")
        replace_constant(model, run, self.node, 1, scaled)


def blocks(matrices: Array) -> Iterator[Array]:
    """Views of some channels at a time, so that a huge weight is never copied as a whole."""
    columns = max(matrices.size // max(matrices.shape[1], 1), 1)
    step = max(_BLOCK // columns, 1)
    for start in range(0, matrices.shape[1], step):
        yield matrices[:, start : start + step]


def _largest(part: Array, channels: bool, inputs: bool) -> NDArray[np.float64]:
    axes = (*([] if channels else [1]), *([] if inputs else [2]))
    return np.asarray(np.abs(part).max(axis=3).max(axis=axes, keepdims=True), np.float64)


def own_constant(node: ir.Node, index: int) -> ir.TensorProtocol:
    """A floating-point constant that only this input uses.

    Raises:
        RefusedError: it is something else.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = g.constant(value)
    if value is None or tensor is None:
        raise RefusedError(f"input {index} of {g.label(node)} is no constant")
    if not tensor.size:
        raise RefusedError(f"'{value.name}' is empty")
    if len(value.uses()) > 1 or value.is_graph_output():
        raise RefusedError(f"'{value.name}' is used elsewhere, too")
    if tensor.dtype not in _FLOATS:
        raise RefusedError(f"'{value.name}' is {tensor.dtype.name}")
    return tensor


def replace_constant(model: Model, run: Run, node: ir.Node, index: int, data: Array) -> None:
    """Put new numbers in the place of a constant that only this input uses, under its name."""
    old = node.inputs[index]
    assert old is not None
    name = old.name or "weight"
    node.replace_input_with(index, None)
    run.drop_constant(old)
    run.names(model).release(name)
    node.replace_input_with(index, run.new_constant(model, node, data, name))
