"""Matrix products with a bias are one Gemm: αA'B' + βC, A' and B' transposed or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match, Rule, RulePass, any_, maybe, op

# ONNX Runtime's CPU Gemm has no integer kernel, and none for bfloat16.
_DTYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


class MatMulAdd(Rule):
    """A·B + c = Gemm(A, B, c), for matrices A and B and a c that broadcasts into A·B."""

    pattern = op("Add", op("MatMul", any_("a"), any_("b"), name="product"), any_("c"), commutative=True)

    def rewrite(self, match: Match) -> ir.Value:
        """One Gemm."""
        shapes = match.run.shapes(match.model)
        assert match.root.graph is not None
        match.require(
            g.opset(match.model.ir, match.root.graph) >= 7, "Gemm broadcasts otherwise before opset 7"
        )
        for name in "ab":
            rank = shapes.rank(match[name])
            match.require(rank == 2, f"'{match[name].name}' is no matrix, its rank is {rank or 'not known'}")
        match.require(shapes.dtype(match["a"]) in _DTYPES, "ONNX Runtime has no Gemm for its type")
        product, bias = shapes.dims(match["product"]), shapes.dims(match["c"])
        match.require(bias is not None, f"the shape of '{match['c'].name}' is not known")
        assert product is not None and bias is not None
        wanted = product[len(product) - len(bias) :]
        fits = len(bias) <= 2 and all(b in (1, p) for b, p in zip(bias, wanted, strict=True))
        match.require(fits, f"'{match['c'].name}' is not known to broadcast into the product")
        return match.op("Gemm", [match["a"], match["b"], match["c"]])


class TransposeGemmA(Rule):
    """Gemm(Aᵀ, B, c) = Gemm(A, B, c) with transA turned around."""

    pattern = op("Gemm", op("Transpose", any_("x"), node="transpose"), any_("b"), maybe("c"))

    def rewrite(self, match: Match) -> ir.Value:
        """The Gemm without the Transpose."""
        return _turned(match, "transA", [match["x"], *match.root.inputs[1:]])


class TransposeGemmB(Rule):
    """Gemm(A, Bᵀ, c) = Gemm(A, B, c) with transB turned around."""

    pattern = op("Gemm", any_("a"), op("Transpose", any_("x"), node="transpose"), maybe("c"))

    def rewrite(self, match: Match) -> ir.Value:
        """The Gemm without the Transpose."""
        return _turned(match, "transB", [match.root.inputs[0], match["x"], *match.root.inputs[2:]])


def _turned(match: Match, name: str, inputs: list[ir.Value | None]) -> ir.Value:
    order = g.attribute(match.node("transpose"), "perm", (1, 0))
    match.require(tuple(order) == (1, 0), "the Transpose does not swap the two axes")
    turned = {name: 1 - int(g.attribute(match.root, name, 0))}
    kept = [a for a in match.root.attributes.values() if a.name != name]
    return match.op("Gemm", inputs, [*kept, *ir.convenience.convert_attributes(turned)])


@dataclass(frozen=True)
class MatMulAddToGemm(RulePass):
    """Turn two-dimensional MatMul + Add into Gemm, and take Transposes into it."""

    name: ClassVar[str] = "matmul-add-to-gemm"
    rules: ClassVar[tuple[type[Rule], ...]] = (MatMulAdd, TransposeGemmA, TransposeGemmB)
