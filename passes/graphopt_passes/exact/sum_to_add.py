"""A Sum of two values is their Add, which ONNX Runtime fuses where it does not know Sum.

Between DequantizeLinear and QuantizeLinear, behind a Conv and before a LayerNormalization it looks for Add.
Longer Sums stay: they are one node, and would be several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match, Rule, RulePass, any_, op


class SumOfTwo(Rule):
    """Sum(a, b) = a + b.

    Before opset 8 Sum does not broadcast, so that Add gives the same where Sum does not fail.
    """

    pattern = op("Sum", any_("a"), any_("b"))

    def rewrite(self, match: Match) -> ir.Value:
        """One Add."""
        assert match.root.graph is not None
        opset = g.opset(match.model.ir, match.root.graph)
        match.require(opset >= 7, "Add has other attributes before opset 7")
        products = (match[name].producer() for name in "ab")
        taken = any(g.is_op(node, "Gemm") and len(node.inputs) == 2 for node in products if node)
        match.require(not taken, "ONNX Runtime merges it into the Gemm, which has no bias")
        return match.op("Add", [match["a"], match["b"]])


@dataclass(frozen=True)
class SumToAdd(RulePass):
    """Turn Sums of two values into Add."""

    name: ClassVar[str] = "sum-to-add"
    rules: ClassVar[tuple[type[Rule], ...]] = (SumOfTwo,)
