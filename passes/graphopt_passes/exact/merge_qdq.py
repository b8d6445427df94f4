"""Quantizing what was dequantized from the same grid gives the integers back.

    Q(DQ(q)) = round(s(q - z) / s) + z = q

In float32 s(q - z) / s is off from the integer q - z by two roundings, less than 2¹⁶·2⁻²³ for integers of
up to 16 bits, so that it rounds to it. This takes that s(q - z) neither overflows nor becomes subnormal.
Of two pairs with the same grid in a row, one is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match, Rule, RulePass, any_, const, maybe, op

_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)
_SPAN = 2.0**16


class QuantizeDequantized(Rule):
    """Q(DQ(q, s, z), s, z) = q, whoever else uses the floats."""

    pattern = op("QuantizeLinear", any_("floats"), const("scale"), maybe("zero"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The integers."""
        inner = match["floats"].producer()
        if not g.is_op(inner, "DequantizeLinear"):
            return None
        assert inner is not None
        integers, scale, zero = [*inner.inputs, None][:3]
        assert integers is not None
        shapes = match.run.shapes(match.model)
        dtype = shapes.dtype(integers)
        same = dtype in _INTEGERS and dtype == shapes.dtype(match.root.outputs[0])
        match.require(same, "the integers are of different types, or of more than 16 bits")
        equal = _equal(match["scale"], scale) and _equal(match.get("zero"), zero)
        match.require(equal, "the grids differ")
        match.require(_is_plain(match["scale"]), "its scale is not float32, not positive, or extreme")
        match.require("precision" not in match.root.attributes, "it divides in another type than float32")
        match.require(_layout(match.root) == _layout(inner), "they lie along different axes")
        return integers


def _equal(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether both are the same value or equal constants, or both are omitted."""
    if a is b:
        return True
    x, y = g.array(a), g.array(b)
    return x is not None and y is not None and x.dtype == y.dtype and np.array_equal(x, y)


def _is_plain(value: ir.Value) -> bool:
    """Whether a grid with these scales lies within the normal numbers."""
    scale = g.array(value)
    if scale is None or scale.dtype != np.float32:
        return False
    limits = np.finfo(np.float32)
    return bool(((scale >= limits.tiny) & (scale <= limits.max / _SPAN)).all())


def _layout(node: ir.Node) -> tuple[int, int]:
    return g.attribute(node, "axis", 1), g.attribute(node, "block_size", 0)


@dataclass(frozen=True)
class MergeQdq(RulePass):
    """Remove QuantizeLinear behind a DequantizeLinear with the same grid."""

    name: ClassVar[str] = "merge-qdq"
    rules: ClassVar[tuple[type[Rule], ...]] = (QuantizeDequantized,)
