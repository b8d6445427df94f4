"""How y ↦ a·y + b, one a and b per channel, merges into the constants of the linear operator beside it.

Everything is computed in float64 and rounded once to the dtype of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match

Array = np.ndarray[Any, Any]
_MANTISSA_BITS = {
    ir.DataType.DOUBLE: 52,
    ir.DataType.FLOAT: 23,
    ir.DataType.FLOAT16: 10,
    ir.DataType.BFLOAT16: 7,
}


@dataclass(frozen=True)
class Affine:
    """y ↦ scale·y + shift, both float64 of shape [C] or [1]."""

    scale: Array
    shift: Array

    @property
    def scales(self) -> bool:
        """Whether the scale is not 1 everywhere."""
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        """Whether the shift is not 0 everywhere."""
        return bool((self.shift != 0).any())


def weight(match: Match, value: ir.Value | None, what: str) -> Array:
    """A constant weight in float64; refused unless it is a floating-point constant."""
    tensor = g.constant(value)
    match.require(tensor is not None, f"its {what} is no constant")
    assert tensor is not None
    match.require(tensor.dtype in _MANTISSA_BITS, f"its {what} is {tensor.dtype.name}, not floating point")
    return tensor.numpy().astype(np.float64)


def rounded(match: Match, old: ir.Value, new: Array) -> ir.Value:
    """A new constant in the place of ``old``, in its dtype; the engine judges what a shared one costs."""
    tensor = g.constant(old)
    assert tensor is not None
    return stored(match, new, tensor.dtype, old.name or "weight")


def stored(match: Match, data: Array, dtype: ir.DataType, name: str) -> ir.Value:
    """A constant rounded from float64; refused when the dtype's range loses more than its rounding."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = data.astype(dtype.numpy())
        back = result.astype(np.float64)
    match.require(np.isfinite(back).all(), f"the merged '{name}' is not finite in {dtype.name}")
    scale = np.abs(data).max(initial=0.0)
    error = np.abs(back - data).max(initial=0.0)
    match.require(error <= _epsilon(dtype) * scale, f"the merged '{name}' underflows in {dtype.name}")
    return match.constant(result, name)


def _epsilon(dtype: ir.DataType) -> float:
    return 2.0 ** -_MANTISSA_BITS[dtype]


def after(match: Match, node: ir.Node, affine: Affine) -> ir.Value:
    """The node with an affine map of its output channels merged in; its constants are checked here."""
    return {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "BatchNormalization": _norm}[
        node.op_type
    ](match, node, affine)


def channels(match: Match, node: ir.Node) -> int:
    """The number of output channels (axis 1) of a linear node, from its constants."""
    if node.op_type == "BatchNormalization":
        return int(weight(match, node.inputs[1], "scale").size)
    shape = weight(match, node.inputs[1], "weight").shape
    if node.op_type == "Conv":
        return int(shape[0])
    if node.op_type == "ConvTranspose":
        return int(shape[1] * g.attribute(node, "group", 1))
    return int(shape[0 if g.attribute(node, "transB", 0) else 1])


def _conv(match: Match, node: ir.Node, affine: Affine) -> ir.Value:
    """a·(W∗x + c) + b = (a·W)∗x + (a·c + b), a along the first axis of W."""
    w = weight(match, node.inputs[1], "weight")
    merged = w * _along(affine.scale, 0, w.ndim)
    return _rebuilt(match, node, merged, w.shape[0], affine)


def _conv_transpose(match: Match, node: ir.Node, affine: Affine) -> ir.Value:
    """As Conv; W is [C_in, C_out/group, …] and group k of the input makes output channels k·C_out/group …."""
    w = weight(match, node.inputs[1], "weight")
    group, per_group = int(g.attribute(node, "group", 1)), w.shape[1]
    total = per_group * group
    scale = np.broadcast_to(affine.scale, (total,)).reshape(group, 1, per_group, *[1] * (w.ndim - 2))
    merged = (w.reshape(group, -1, *w.shape[1:]) * scale).reshape(w.shape)
    return _rebuilt(match, node, merged, total, affine)


def _gemm(match: Match, node: ir.Node, affine: Affine) -> ir.Value:
    """a·(αAB + βC) + b = αA(B·a) + (a·βC + b), a along the columns of B."""
    w = weight(match, node.inputs[1], "weight")
    axis = 0 if g.attribute(node, "transB", 0) else 1
    return _rebuilt(match, node, w * _along(affine.scale, axis, 2), w.shape[axis], affine)


def _rebuilt(match: Match, node: ir.Node, merged: Array, count: int, affine: Affine) -> ir.Value:
    x, w = node.inputs[0], node.inputs[1]
    assert w is not None
    new_w = rounded(match, w, merged) if affine.scales else w
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    new_bias = _bias(match, node, bias, count, affine)
    attributes = [a for a in node.attributes.values() if not (node.op_type == "Gemm" and a.name == "beta")]
    return match.op(node.op_type, [x, new_w] if new_bias is None else [x, new_w, new_bias], attributes)


def _bias(match: Match, node: ir.Node, old: ir.Value | None, count: int, affine: Affine) -> ir.Value | None:
    if old is None:
        if not affine.shifts:
            return None
        dtype = g.constant(node.inputs[1])
        assert dtype is not None
        shift = np.broadcast_to(affine.shift, (count,))
        return stored(match, shift, dtype.dtype, f"{g.output_name(node)}_bias")
    bias = weight(match, old, "bias")
    match.require(
        bias.size in (1, count) and bias.shape[-1:] in ((), (1,), (count,)), "its bias varies by row"
    )
    beta = float(g.attribute(node, "beta", 1.0)) if node.op_type == "Gemm" else 1.0
    merged = np.broadcast_to(bias.reshape(-1) * beta * affine.scale + affine.shift, (count,))
    return rounded(match, old, merged)


def _norm(match: Match, node: ir.Node, affine: Affine) -> ir.Value:
    """a·(s·(x - m)/σ + B) + b = (a·s)·(x - m)/σ + (a·B + b)."""
    x, scale, bias, mean, variance = node.inputs
    assert scale is not None and bias is not None
    new_scale, new_bias = scale, bias
    if affine.scales:
        new_scale = rounded(match, scale, weight(match, scale, "scale") * affine.scale)
    new_bias = rounded(match, bias, weight(match, bias, "bias") * affine.scale + affine.shift)
    return match.op(node.op_type, [x, new_scale, new_bias, mean, variance], list(node.attributes.values()))


def before(match: Match, node: ir.Node, x: ir.Value, affine: Affine) -> ir.Value:
    """The node with an affine map of its input channels merged in: W∗(a·x + b) = (W·a)∗x + W∗b."""
    w = weight(match, node.inputs[1], "weight")
    inputs = _per_input(match, node, w, affine.scale)
    merged = w * inputs
    shift = (w * _per_input(match, node, w, affine.shift)).sum(axis=_summed(node, w))
    bias_only = Affine(np.ones(1), np.atleast_1d(shift * float(g.attribute(node, "alpha", 1.0))))
    old_w, old_bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    assert old_w is not None
    new_w = rounded(match, old_w, merged) if affine.scales else old_w
    new_bias = _bias(match, node, old_bias, shift.size, bias_only) if affine.shifts else old_bias
    attributes = [a for a in node.attributes.values() if not (affine.shifts and a.name == "beta")]
    return match.op(node.op_type, [x, new_w] if new_bias is None else [x, new_w, new_bias], attributes)


def _summed(node: ir.Node, w: Array) -> tuple[int, ...]:
    if node.op_type == "Gemm":
        return (1,) if g.attribute(node, "transB", 0) else (0,)
    return tuple(range(1, w.ndim))


def _per_input(match: Match, node: ir.Node, w: Array, values: Array) -> Array:
    """Values per input channel, laid out to multiply the weight."""
    if node.op_type == "Gemm":
        axis = 1 if g.attribute(node, "transB", 0) else 0
        match.require(values.size in (1, w.shape[axis]), "the constant does not fit the columns of A")
        return _along(values, axis, 2)
    group = int(g.attribute(node, "group", 1))
    match.require(values.size in (1, group * w.shape[1]), "the constant does not fit the input channels")
    spread = np.broadcast_to(values, (group * w.shape[1],)).reshape(group, 1, w.shape[1])
    rows = np.repeat(spread, w.shape[0] // group, axis=1).reshape(w.shape[0], w.shape[1])
    return rows.reshape(*rows.shape, *[1] * (w.ndim - 2))


def pads_nothing(node: ir.Node, w: Array) -> bool:
    """Whether a Conv adds no zeros around its input."""
    auto = g.attribute(node, "auto_pad", "NOTSET")
    if auto == "VALID":
        return True
    if auto != "NOTSET":
        return all(size == 1 for size in w.shape[2:])
    return not any(g.attribute(node, "pads", ()) or ())


def _along(values: Array, axis: int, rank: int) -> Array:
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def per_channel(match: Match, constant: Array, rank: int, axis: int = 1) -> Array:
    """A broadcast constant as one value per channel, shape [1] or [C]; refused if it varies along other axes.

    Args:
        constant: what stands in the Mul, Add, Sub or Div.
        rank: the rank of the other operand, or the least it can have; the constant must not raise it.
        axis: the axis of the channels when the operand has that rank.
    """
    match.require(constant.ndim <= rank, "the constant may raise the rank")
    shape = (1,) * (rank - constant.ndim) + constant.shape
    match.require(constant.size > 0, "the constant is empty")
    match.require(constant.size == shape[axis], "the constant varies along other axes than the channels")
    return constant.reshape(-1)
