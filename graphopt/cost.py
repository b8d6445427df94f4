"""Multiply-accumulates of single nodes, from the shapes of what they read and make.

Counted as in the literature on efficient networks: one product with its addition is one; bias, activations,
normalization and data movement are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt import graph as g
from graphopt.shapes.inference import Shapes

Dims = tuple[int, ...]


def macs_of(node: ir.Node, shapes: Shapes) -> int | None:
    """The multiply-accumulates of one execution of the node; None if they depend on a dim that is not known.

    Control flow and calls count nothing themselves; the nodes in their bodies count once.
    """
    rule = _RULES.get(node.op_type) if node.domain in g.DEFAULT_DOMAINS else None
    if rule is None:
        return 0
    inputs = [shapes.static_dims(value) for value in node.inputs]
    try:
        return rule(node, inputs, shapes.static_dims(node.outputs[0]))
    except (_UnknownError, IndexError):
        return None


class _UnknownError(Exception):
    """A dim that is needed is not a number."""


def _known(dims: Dims | None) -> Dims:
    if dims is None:
        raise _UnknownError
    return dims


Rule = Callable[[ir.Node, Sequence[Dims | None], Dims | None], int]


def _conv(weight: int) -> Rule:
    """Every output element is a sum over a kernel [channels out, channels in / group, …]."""
    return lambda node, inputs, output: math.prod(_known(output)) * math.prod(_known(inputs[weight])[1:])


def _conv_transpose(node: ir.Node, inputs: Sequence[Dims | None], output: Dims | None) -> int:
    """Every input element is spread over a kernel [channels in, channels out / group, …]."""
    return math.prod(_known(inputs[0])) * math.prod(_known(inputs[1])[1:])


def _matmul(node: ir.Node, inputs: Sequence[Dims | None], output: Dims | None) -> int:
    return math.prod(_known(output)) * _known(inputs[0])[-1]


def _gemm(node: ir.Node, inputs: Sequence[Dims | None], output: Dims | None) -> int:
    rows, columns = _known(inputs[0])
    return math.prod(_known(output)) * (rows if g.attribute(node, "transA", 0) else columns)


def _recurrent(node: ir.Node, inputs: Sequence[Dims | None], output: Dims | None) -> int:
    """Each step multiplies by W [directions, gates, inputs] and R [directions, gates, hidden]."""
    steps, batch, _ = _known(inputs[0])
    return steps * batch * (math.prod(_known(inputs[1])) + math.prod(_known(inputs[2])))


def _einsum(node: ir.Node, inputs: Sequence[Dims | None], output: Dims | None) -> int:
    """One product per combination of all indices."""
    equation = str(g.attribute(node, "equation")).replace(" ", "").partition("->")[0]
    if "..." in equation:
        raise _UnknownError
    sizes = {
        letter: size
        for letters, dims in zip(equation.split(","), inputs, strict=True)
        for letter, size in zip(letters, _known(dims), strict=True)
    }
    return math.prod(sizes.values()) if len(inputs) > 1 else 0


_RULES: dict[str, Rule] = {
    "Conv": _conv(1),
    "ConvInteger": _conv(1),
    "DeformConv": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Einsum": _einsum,
}
