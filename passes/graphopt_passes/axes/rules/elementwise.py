"""Operators on single elements: the axes of operands are those of the result; dims of 1 broadcast.

So residual connections, gates, biases and slopes of PRelu follow by themselves.
"""

from __future__ import annotations

from graphopt_passes.axes.site import Site, rule
from graphopt_passes.axes.space import Side

UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu
HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink
Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"""
BINARY = """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual
Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor"""


@rule(*UNARY.split())
def _unary(site: Site) -> None:
    site.same_axes(site.input(), site.output())


@rule("CastLike", "Clip", "Dropout")
def _first(site: Site) -> None:
    """Other operands are scalars, or only give a type."""
    for output in site.outputs:
        site.same_axes(site.input(), output)


@rule(*BINARY.split())
def _broadcast(site: Site) -> None:
    if site.at.opset < 7:
        return _legacy(site)
    for side in site.inputs:
        fit(site, side, site.output())
    return None


def fit(site: Site, x: Side, y: Side) -> None:
    """x broadcasts to y; where an axis of x is 1 and that of y is not, y may be cut without x."""
    for axis in range(x.rank):
        at = axis + y.rank - x.rank
        if x.dims[axis] != 1 or y.dims[at] == 1:
            site.same(x, axis, y, at)


def _legacy(site: Site) -> None:
    """Until opset 7 the second operand was aligned with an attribute, or had the same dims."""
    x, y = site.input(), site.output()
    site.same_axes(x, y)
    for other in site.inputs[1:]:
        if other.rank == x.rank:
            site.same_axes(other, y)
        else:
            start = int(site.attr("axis", x.rank - other.rank)) % x.rank
            for axis in range(other.rank):
                if other.dims[axis] != 1:
                    site.same(other, axis, y, start + axis)
