"""Constant arithmetic merges into the constants of the Conv, Gemm, MatMul or BatchNormalization beside it.

    y·k = k·y + 0     y / k = (1/k)·y + 0     y + k = 1·y + k     y - k = 1·y - k     k - y = -1·y + k

with k a number or one number per channel. A Pad of zeros merges into the pads of the Conv behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match, Op, Pattern, Rule, RulePass, any_, const, maybe, op
from graphopt_passes.fuse import linear
from graphopt_passes.fuse.constants import dims, scaled
from graphopt_passes.fuse.conv_bn import normalization, require_no_border
from graphopt_passes.fuse.pad import PadAveragePool, PadConv


def _arithmetic(operand: Pattern, *op_types: str) -> Op:
    return op(
        op_types or ("Mul", "Add", "Sub", "Div"), operand, const("k"), commutative=True, node="arithmetic"
    )


def _affine(match: Match, rank: int, axis: int = 1) -> linear.Affine:
    """The matched arithmetic as scale and shift per channel."""
    node = match.node("arithmetic")
    assert node.graph is not None
    match.require(g.opset(match.model.ir, node.graph) >= 7, "it broadcasts by the rules before opset 7")
    k = linear.per_channel(match, match["k"], rank, axis)
    one, zero = np.ones(1), np.zeros(1)
    reverse = node.inputs[0] is match["k"]
    if node.op_type == "Mul":
        return linear.Affine(k, zero)
    if node.op_type == "Add":
        return linear.Affine(one, k)
    if node.op_type == "Sub":
        return linear.Affine(-one, k) if reverse else linear.Affine(one, -k)
    match.require(not reverse, "it divides the constant")
    match.require((k != 0).all(), "it divides by 0")
    return linear.Affine(one / k, zero)


def _require_width(match: Match, value: ir.Value, axis: int, affine: linear.Affine) -> None:
    """Refuse when the arithmetic may broadcast its operand to more channels than it has."""
    count = max(affine.scale.size, affine.shift.size)
    dims = match.run.shapes(match.model).dims(value)
    fits = count == 1 or (dims is not None and dims[axis] == count)
    match.require(fits, f"'{value.name}' is not known to have {count} channels")


class LinearAffine(Rule):
    """a·(W∗x + c) + b = (a·W)∗x + (a·c + b), for Conv, ConvTranspose and Gemm."""

    pattern = _arithmetic(
        op(("Conv", "ConvTranspose", "Gemm"), any_("x"), any_("w"), maybe("c"), node="linear")
    )

    def rewrite(self, match: Match) -> ir.Value:
        """The linear node with new weights."""
        node = match.node("linear")
        affine = _affine(match, len(linear.weight_dims(match, node)))
        count = linear.channels(match, node)
        match.require(
            max(affine.scale.size, affine.shift.size) in (1, count), "the constant has more channels"
        )
        return linear.after(match, node, affine)


class BatchNormAffine(Rule):
    """a·BN(x) + b = BN(x) with scale a·scale and bias a·bias + b."""

    pattern = _arithmetic(
        op(
            "BatchNormalization",
            any_("x"),
            any_("scale"),
            any_("shift"),
            any_("mean"),
            any_("variance"),
            node="bn",
            name="y",
        )
    )

    def rewrite(self, match: Match) -> ir.Value:
        """The BatchNormalization with new parameters."""
        node = match.node("bn")
        old = normalization(match, node)
        rank = match.run.shapes(match.model).rank(match["y"])
        match.require(rank is not None and rank >= 2, "the rank is not known")
        affine = _affine(match, rank or 0)
        count = max(affine.scale.size, affine.shift.size)
        match.require(count in (1, old.scale.size), "the constant has more channels")
        return linear.after(match, node, affine)


class AffineLinear(Rule):
    """W∗(a·x + b) + c = (W·a)∗x + (W∗b + c), exact when no padding zero meets the shift b."""

    pattern = op(("Conv", "Gemm"), _arithmetic(any_("x")), any_("w"), maybe("c"), node="linear")

    def rewrite(self, match: Match) -> ir.Value:
        """The linear node on the operand of the arithmetic."""
        rank = len(linear.weight_dims(match, match.root))
        affine = _affine(match, rank)
        _require_rank(match, match["x"], rank)
        _require_width(match, match["x"], 1, affine)
        require_no_border(match, match.root, affine)
        return linear.before(match, match.root, match["x"], affine)


class MatMulScale(Rule):
    """a·(x·W) = x·(W·a), a number or one number per column."""

    pattern = _arithmetic(op("MatMul", any_("x"), any_("w"), node="linear"), "Mul", "Div")

    def rewrite(self, match: Match) -> ir.Value:
        """The MatMul with scaled weights."""
        shape = dims(match, match["w"], "weight")
        match.require(len(shape) == 2, "its weight is no matrix")
        affine = _affine(match, 1, axis=0)
        match.require(affine.scale.size in (1, shape[1]), "the constant has more columns")
        new = scaled(match, match["w"], affine.scale.reshape(1, -1))
        return match.op("MatMul", [match["x"], new])


class ScaleMatMul(Rule):
    """(a·x)·W = x·(a·W), a number or one number per row of W."""

    pattern = op("MatMul", _arithmetic(any_("x"), "Mul", "Div"), any_("w"), node="linear")

    def rewrite(self, match: Match) -> ir.Value:
        """The MatMul with scaled weights."""
        shape = dims(match, match["w"], "weight")
        match.require(len(shape) == 2, "its weight is no matrix")
        affine = _affine(match, 1, axis=0)
        _require_rank(match, match["x"], 1)
        _require_width(match, match["x"], -1, affine)
        match.require(affine.scale.size in (1, shape[0]), "the constant has more rows")
        new = scaled(match, match["w"], affine.scale.reshape(-1, 1))
        return match.op("MatMul", [match["x"], new])


def _require_rank(match: Match, value: ir.Value, least: int) -> None:
    """Refuse when the constant may raise its operand to the rank that the linear operator takes at least."""
    k, rank = g.constant(match["k"]), match.run.shapes(match.model).rank(value)
    raises = k is None or len(k.shape) >= least
    match.require(not raises or (rank or 0) >= least, f"the constant may raise the rank of '{value.name}'")


@dataclass(frozen=True)
class FuseConvAffine(RulePass):
    """Merge constant Mul, Add, Sub, Div and zero Pad into the linear operator beside them."""

    name: ClassVar[str] = "fuse-conv-affine"
    rules: ClassVar[tuple[type[Rule], ...]] = (
        LinearAffine,
        BatchNormAffine,
        AffineLinear,
        MatMulScale,
        ScaleMatMul,
        PadConv,
        PadAveragePool,
    )
