"""Layers that multiply with one constant matrix: Conv, Gemm and MatMul, all seen as y = W·x + b.

W is [channels out, columns]; a Conv's columns are those of its patches, C·∏kernel. What is read here is which
layers these are, why others are not, and how a layer's bias is reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run

Array = NDArray[Any]
OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Linear:
    """A layer.

    Attributes:
        node: the operator.
        weight: its second input, float32, read by nobody else.
        channels, columns: of the matrix.
    """

    node: ir.Node
    weight: ir.Value
    channels: int
    columns: int

    @property
    def name(self) -> str:
        """How reports call it: the name of its output."""
        return g.output_name(self.node)

    @property
    def numbers(self) -> int:
        """Of the weight."""
        return self.channels * self.columns

    @property
    def is_turned(self) -> bool:
        """Whether the weight is stored as [columns, channels]."""
        if self.node.op_type == "Conv":
            return False
        return self.node.op_type == "MatMul" or not g.attribute(self.node, "transB", 0)

    def matrix(self) -> Array:
        """W, float32 [channels, columns]."""
        stored = g.array(self.weight)
        assert stored is not None
        return stored.T if self.is_turned else stored.reshape(self.channels, -1)

    def stored(self, matrix: Array) -> Array:
        """A matrix of as many channels and columns as the weight lays it out."""
        if self.node.op_type == "Conv":
            matrix = matrix.reshape(self.dims)
        return np.ascontiguousarray(matrix.T if self.is_turned else matrix, np.float32)

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of the weight as it is stored."""
        tensor = g.constant(self.weight)
        assert tensor is not None
        return tuple(tensor.shape.numpy())

    @property
    def axis(self) -> int:
        """The axis of the output that its channels are."""
        return 1 if self.node.op_type == "Conv" else -1


def linears(model: Model, run: Run, technique: str) -> Iterator[Linear | tuple[ir.Node, str]]:
    """All layers that multiply with a constant; those that a technique has to leave alone with the reason."""
    for node in g.nodes(model.ir):
        if not g.is_op(node, *OPERATORS) or len(node.inputs) < 2:
            continue
        tensor = g.constant(node.inputs[1])
        if tensor is None or len(tensor.shape) < 2:
            continue
        if reason := _refusal(node, tensor, run, technique):
            yield node, reason
        else:
            yield _linear(node, tensor)


def _linear(node: ir.Node, tensor: ir.TensorProtocol) -> Linear:
    weight, dims = node.inputs[1], tuple(tensor.shape.numpy())
    assert weight is not None
    found = Linear(node, weight, dims[0], math.prod(dims[1:]))
    return Linear(node, weight, found.columns, found.channels) if found.is_turned else found


def _refusal(node: ir.Node, tensor: ir.TensorProtocol, run: Run, technique: str) -> str:
    """Why a layer stays as it is; empty if it need not."""
    weight = node.inputs[1]
    assert weight is not None
    why_not = {
        "it is to be kept (--keep)": run.keeps(node),
        f"its weight is {tensor.dtype.name.lower()}": tensor.dtype is not ir.DataType.FLOAT,
        "its weight is read elsewhere, too": len(weight.uses()) > 1 or weight.is_graph_output(),
        f"its groups of channels are thin already ({technique} is for whole layers)": node.op_type == "Conv"
        and g.attribute(node, "group", 1) != 1,
        "its weight is a stack of matrices": node.op_type == "MatMul" and len(tensor.shape) != 2,
        "its product is scaled (alpha)": node.op_type == "Gemm" and g.attribute(node, "alpha", 1.0) != 1.0,
    }
    return next((reason for reason, holds in why_not.items() if holds), "")


def bias_of(layer: Linear) -> Array | None:
    """The constant that is added to each channel: that of the operator, or of the Add behind a MatMul.

    Returns:
        float64 [channels]; zeros if there is none but could be; None if what is added is not such a constant.
    """
    place = bias_place(layer)
    if place is None:
        return None
    node, index = place
    if index >= len(node.inputs) or node.inputs[index] is None:
        return np.zeros(layer.channels)
    found = g.array(node.inputs[index])
    assert found is not None
    return np.broadcast_to(found.reshape(-1), (layer.channels,)).astype(np.float64)


def bias_place(layer: Linear) -> tuple[ir.Node, int] | None:
    """The node and the index of its input that is the bias; None if there is no place for one."""
    node = layer.node
    if node.op_type == "MatMul":
        return _add_behind(node, layer.channels)
    if node.op_type == "Gemm" and g.attribute(node, "beta", 1.0) != 1.0:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and not _is_row(node.inputs[2], layer.channels):
        return None
    return node, 2


def _add_behind(node: ir.Node, channels: int) -> tuple[ir.Node, int] | None:
    """The only reader of a product, if it adds a constant row."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or not g.is_op(uses[0].node, "Add"):
        return None
    other = 1 - uses[0].idx
    return (uses[0].node, other) if _is_row(uses[0].node.inputs[other], channels) else None


def _is_row(value: ir.Value | None, channels: int) -> bool:
    """Whether a value is a constant with a number for each channel, or one for all."""
    tensor = g.constant(value)
    if tensor is None or tensor.dtype is not ir.DataType.FLOAT:
        return False
    dims = tuple(tensor.shape.numpy())
    return not dims or (dims[-1] in (1, channels) and math.prod(dims) == dims[-1])


def set_bias(layer: Linear, bias: Array, model: Model, run: Run) -> None:
    """Put another bias in its place.

    Args:
        layer: one for which :func:`bias_of` gave numbers.
        bias: [channels].
        model, run: what is changed, and its record.
    """
    place = bias_place(layer)
    assert place is not None
    node, index = place
    name = f"{layer.name}_bias"
    value = run.new_constant(model, node, bias.astype(np.float32), name)
    while len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
