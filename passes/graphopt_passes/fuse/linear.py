"""How y ↦ a·y + b, one a and b per channel, merges into the constants of the linear operator beside it.

Everything is computed in float64 and rounded once to the dtype of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match
from graphopt_passes.fuse.constants import blocks, dims, floating, rounded, rows_of, scaled, stored, vector

Array = np.ndarray[Any, Any]


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


def weight_dims(match: Match, node: ir.Node) -> tuple[int, ...]:
    """The shape of a linear node's constant weight, of rank 2 and more."""
    found = dims(match, node.inputs[1], "weight")
    match.require(len(found) >= 2, "its weight is no matrix")
    return found


def after(match: Match, node: ir.Node, affine: Affine) -> ir.Value:
    """The node with an affine map of its output channels merged in; its constants are checked here."""
    return {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "BatchNormalization": _norm}[
        node.op_type
    ](match, node, affine)


def channels(match: Match, node: ir.Node) -> int:
    """The number of output channels (axis 1) of a linear node, from its constants."""
    if node.op_type == "BatchNormalization":
        return int(vector(match, node.inputs[1], "scale").size)
    shape = weight_dims(match, node)
    if node.op_type == "Conv":
        return int(shape[0])
    if node.op_type == "ConvTranspose":
        return int(shape[1] * g.attribute(node, "group", 1))
    return int(shape[0 if g.attribute(node, "transB", 0) else 1])


def _conv(match: Match, node: ir.Node, affine: Affine) -> ir.Value:
    """a·(W∗x + c) + b = (a·W)∗x + (a·c + b), a along the first axis of W."""
    shape = weight_dims(match, node)
    return _rebuilt(match, node, _along(affine.scale, 0, len(shape)), shape[0], affine)


def _conv_transpose(match: Match, node: ir.Node, affine: Affine) -> ir.Value:
    """As Conv; W is [C_in, C_out/group, …] and group k of the input makes output channels k·C_out/group …."""
    shape = weight_dims(match, node)
    group, per_group = int(g.attribute(node, "group", 1)), shape[1]
    total = per_group * group
    scale = np.broadcast_to(affine.scale, (total,)).reshape(group, per_group)
    factors = np.repeat(scale, shape[0] // group, axis=0).reshape(shape[:2] + (1,) * (len(shape) - 2))
    return _rebuilt(match, node, factors, total, affine)


def _gemm(match: Match, node: ir.Node, affine: Affine) -> ir.Value:
    """a·(αAB + βC) + b = αA(B·a) + (a·βC + b), a along the columns of B."""
    shape = weight_dims(match, node)
    axis = 0 if g.attribute(node, "transB", 0) else 1
    return _rebuilt(match, node, _along(affine.scale, axis, 2), shape[axis], affine)


def _rebuilt(match: Match, node: ir.Node, factors: Array, count: int, affine: Affine) -> ir.Value:
    x, w = node.inputs[0], node.inputs[1]
    new_w = scaled(match, w, factors) if affine.scales else w
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
    bias = vector(match, old, "bias")
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
        new_scale = rounded(match, scale, vector(match, scale, "scale") * affine.scale)
    new_bias = rounded(match, bias, vector(match, bias, "bias") * affine.scale + affine.shift)
    return match.op(node.op_type, [x, new_scale, new_bias, mean, variance], list(node.attributes.values()))


def before(match: Match, node: ir.Node, x: ir.Value, affine: Affine) -> ir.Value:
    """The node with an affine map of its input channels merged in: W∗(a·x + b) = (W·a)∗x + W∗b."""
    shape = weight_dims(match, node)
    old_w, new_bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    factors = _per_input(match, node, shape, affine.scale)
    new_w = scaled(match, old_w, factors) if affine.scales else old_w
    if affine.shifts:
        shift = _shifts(match, node, _per_input(match, node, shape, affine.shift))
        new_bias = _bias(match, node, new_bias, shift.size, Affine(np.ones(1), shift))
    attributes = [a for a in node.attributes.values() if not (affine.shifts and a.name == "beta")]
    return match.op(node.op_type, [x, new_w] if new_bias is None else [x, new_w, new_bias], attributes)


def _shifts(match: Match, node: ir.Node, values: Array) -> Array:
    """What each output channel gets from an input that is constant: the weight summed over all else."""
    tensor = floating(match, node.inputs[1], "weight")
    products = (block * rows_of(values, part) for part, block in blocks(tensor))
    if node.op_type == "Gemm" and not g.attribute(node, "transB", 0):
        shift = sum((product.sum(axis=0) for product in products), np.zeros(tensor.shape.numpy()[1]))
    else:
        sums = [product.reshape(len(product), -1).sum(axis=1) for product in products]
        shift = np.concatenate([np.zeros(0), *sums])
    return shift * float(g.attribute(node, "alpha", 1.0))


def _per_input(match: Match, node: ir.Node, shape: tuple[int, ...], values: Array) -> Array:
    """Values per input channel, laid out to multiply the weight."""
    if node.op_type == "Gemm":
        axis = 1 if g.attribute(node, "transB", 0) else 0
        match.require(values.size in (1, shape[axis]), "the constant does not fit the columns of A")
        return _along(values, axis, 2)
    group = int(g.attribute(node, "group", 1))
    match.require(values.size in (1, group * shape[1]), "the constant does not fit the input channels")
    spread = np.broadcast_to(values, (group * shape[1],)).reshape(group, shape[1])
    return np.repeat(spread, shape[0] // group, axis=0).reshape(shape[:2] + (1,) * (len(shape) - 2))


def pads_nothing(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Whether a Conv adds no zeros around its input."""
    auto = g.attribute(node, "auto_pad", "NOTSET")
    if auto == "VALID":
        return True
    if auto != "NOTSET":
        return all(size == 1 for size in shape[2:])
    return not any(g.attribute(node, "pads", ()) or ())


def _along(values: Array, axis: int, rank: int) -> Array:
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def per_channel(match: Match, constant: ir.Value, rank: int, axis: int = 1) -> Array:
    """A broadcast constant as one value per channel, shape [1] or [C]; refused if it varies along other axes.

    Args:
        constant: what stands in the Mul, Add, Sub or Div.
        rank: the rank of the other operand, or the least it can have; the constant must not raise it.
        axis: the axis of the channels when the operand has that rank.
    """
    found = dims(match, constant, "constant")
    match.require(len(found) <= rank, "the constant may raise the rank")
    shape, size = (1,) * (rank - len(found)) + found, math.prod(found)
    match.require(size > 0, "the constant is empty")
    match.require(size == shape[axis], "the constant varies along other axes than the channels")
    return vector(match, constant, "constant").reshape(-1)
