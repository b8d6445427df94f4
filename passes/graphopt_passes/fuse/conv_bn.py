"""BatchNormalization in inference is one affine map per channel, and merges into what is linear beside it.

BN(y) = a·y + b,   a = scale / √(var + ε),   b = bias - a·mean
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match, Rule, RulePass, any_, maybe, op
from graphopt_passes.fuse import linear
from graphopt_passes.fuse.constants import vector

_PARAMETERS = (any_("scale"), any_("shift"), any_("mean"), any_("variance"))


def normalization(match: Match, node: ir.Node) -> linear.Affine:
    """The affine map of a BatchNormalization node; refused when it trains or normalizes each position."""
    version = g.opset(match.model.ir, match.root.graph) if match.root.graph is not None else 1
    outputs = [value for value in node.outputs if value.name]
    match.require(not g.attribute(node, "training_mode", 0) and len(outputs) == 1, "it is in training mode")
    match.require(version >= 7 or g.attribute(node, "is_test", 0), "it is in training mode")
    match.require(g.attribute(node, "spatial", 1), "it normalizes every position by itself (spatial = 0)")
    names = ("scale", "bias", "mean", "variance")
    scale, bias, mean, variance = (
        vector(match, value, name) for value, name in zip(node.inputs[1:], names, strict=True)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale / np.sqrt(variance + float(g.attribute(node, "epsilon", 1e-5)))
    shift = bias - mean * factor
    match.require(np.isfinite(factor).all() and np.isfinite(shift).all(), "its statistics are not finite")
    return linear.Affine(factor, shift)


class ConvBatchNorm(Rule):
    """BN(W∗x + c) = (a·W)∗x + (a·c + b), for Conv, ConvTranspose and Gemm."""

    pattern = op(
        "BatchNormalization",
        op(("Conv", "ConvTranspose", "Gemm"), any_("x"), any_("w"), maybe("c"), node="linear"),
        *_PARAMETERS,
    )

    def rewrite(self, match: Match) -> ir.Value:
        """The linear node with new weights."""
        return linear.after(match, match.node("linear"), normalization(match, match.root))


class BatchNormConv(Rule):
    """W∗BN(x) + c = (W·a)∗x + (W∗b + c), exact when no padding zero meets the shift b."""

    pattern = op(
        ("Conv", "Gemm"), op("BatchNormalization", any_("x"), *_PARAMETERS, node="bn"), any_("w"), maybe("c")
    )

    def rewrite(self, match: Match) -> ir.Value:
        """The linear node on the BatchNormalization's input."""
        affine = normalization(match, match.node("bn"))
        require_no_border(match, match.root, affine)
        return linear.before(match, match.root, match["x"], affine)


def require_no_border(match: Match, node: ir.Node, affine: linear.Affine) -> None:
    """Refuse to move a shift past padding: the zeros around the input are not shifted."""
    shape = linear.weight_dims(match, node)
    if node.op_type == "Gemm":
        match.require(not g.attribute(node, "transA", 0), "its first operand is transposed")
        return
    still = not affine.shifts or linear.pads_nothing(node, shape)
    match.require(still, "the Conv pads with zeros, which do not shift")


class BatchNormPair(Rule):
    """BN₂(BN₁(x)) = BN₁ with scale a₂·scale₁ and bias a₂·bias₁ + b₂."""

    pattern = op(
        "BatchNormalization",
        op("BatchNormalization", any_("x"), any_("s"), any_("b"), any_("m"), any_("v"), node="first"),
        *_PARAMETERS,
    )

    def rewrite(self, match: Match) -> ir.Value:
        """The first BatchNormalization with new parameters."""
        first = match.node("first")
        normalization(match, first)
        return linear.after(match, first, normalization(match, match.root))


@dataclass(frozen=True)
class FuseConvBn(RulePass):
    """Merge BatchNormalization into the weights of Conv, ConvTranspose, Gemm or another one of its kind."""

    name: ClassVar[str] = "fuse-conv-bn"
    rules: ClassVar[tuple[type[Rule], ...]] = (ConvBatchNorm, BatchNormConv, BatchNormPair)
