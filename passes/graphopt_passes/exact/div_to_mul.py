"""Division by powers of two is multiplication by their reciprocals, to the last bit.

    x / 2ᵏ = x · 2⁻ᵏ

Both round the same real number, since 2⁻ᵏ is a float. Multiplication is faster, and ONNX Runtime has it on
integers. Neither 2ᵏ nor 2⁻ᵏ may be subnormal, since some targets take subnormal numbers for 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match, Rule, RulePass, any_, const, op

_LEAST_EXPONENTS = {  # of numbers that are not subnormal
    ir.DataType.DOUBLE: -1022,
    ir.DataType.FLOAT: -126,
    ir.DataType.FLOAT16: -14,
    ir.DataType.BFLOAT16: -126,
}
_LIMIT = 4096  # elements; a divisor is a number or one per channel


def are_powers_of_two(numbers: np.ndarray[Any, Any], least: int) -> bool:
    """Whether all numbers are ±2ᵏ with ``least`` ≤ k ≤ -``least``."""
    mantissas, exponents = np.frexp(numbers.astype(np.float64))
    powers = exponents - 1  # mantissas lie in [½, 1)
    return bool(((np.abs(mantissas) == 0.5) & (least <= powers) & (powers <= -least)).all())


class DivByPowersOfTwo(Rule):
    """x / 2ᵏ = x · 2⁻ᵏ for floats."""

    pattern = op("Div", any_("x"), const("divisor"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """One Mul by the reciprocals, or nothing for integers and large divisors."""
        tensor = g.constant(match["divisor"])
        assert tensor is not None
        if tensor.dtype not in _LEAST_EXPONENTS or tensor.size > _LIMIT:
            return None
        divisor = tensor.numpy()
        exact = are_powers_of_two(divisor, _LEAST_EXPONENTS[tensor.dtype])
        match.require(exact, f"the reciprocal of '{match['divisor'].name}' is rounded")
        match.require(not _scales_attention(match), "ONNX Runtime fuses attention that divides its scores")
        reciprocal = np.array(1 / divisor.astype(np.float64), divisor.dtype)
        factor = match.constant(reciprocal, f"{match['divisor'].name}_reciprocal")
        return match.op("Mul", [match["x"], factor], list(match.root.attributes.values()))


def _scales_attention(match: Match) -> bool:
    """Whether the quotient is that of a product (BERT) or goes into one (DistilBERT)."""
    neighbours = [match["x"].producer(), *match.root.outputs[0].consumers()]
    return any(g.is_op(node, "MatMul") for node in neighbours)


@dataclass(frozen=True)
class DivToMul(RulePass):
    """Turn divisions by constant powers of two into multiplications."""

    name: ClassVar[str] = "div-to-mul"
    rules: ClassVar[tuple[type[Rule], ...]] = (DivByPowersOfTwo,)
