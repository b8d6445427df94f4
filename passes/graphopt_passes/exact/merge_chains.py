"""merge-chains: two neighbours of a kind become one, or cancel.

    Transpose(Transpose(x, p), q) = Transpose(x, p[q])
    Reshape(Reshape(x, s), t) = Reshape(x, t)
    Unsqueeze(Unsqueeze(x, a), b) = Unsqueeze(x, b ∪ a′)
    Cast(Cast(x, a), b) = Cast(x, b) when a holds every x
    Slice(Slice(x, axis i), axis j) = Slice(x, axes i, j)

The inner node may have other consumers, then it stays for them; no rule makes more nodes than it found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Array, Match, Rule, RulePass, any_, const, maybe, op
from graphopt_passes.exact.eliminate_identity import same_dims

_RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def inner(match: Match, name: str, *op_types: str) -> ir.Node | None:
    """The node of these types that makes a bound value, unless the user keeps it."""
    node = match[name].producer()
    return node if node is not None and g.is_op(node, *op_types) and not match.run.keeps(node) else None


class TransposeOfTranspose(Rule):
    """Transpose(Transpose(x, p), q) = Transpose(x, p[q]): axis i of the result is axis p[q[i]] of x."""

    pattern = op("Transpose", any_("t"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """x itself when the permutations cancel."""
        first = inner(match, "t", "Transpose")
        if first is None or first.inputs[0] is None:
            return None
        p, q = g.attribute(first, "perm"), g.attribute(match.root, "perm")
        if p is None and q is None:
            return first.inputs[0]
        rank = len(p or q)
        p, q = p or range(rank)[::-1], q or range(rank)[::-1]
        perm = [p[axis] for axis in q]
        return (
            first.inputs[0]
            if perm == sorted(perm)
            else match.op("Transpose", first.inputs[:1], {"perm": perm})
        )


class ReshapeOfReshape(Rule):
    """Reshape(f(x), t) = Reshape(x, t) for f that changes only the shape: the elements keep their order."""

    pattern = op("Reshape", any_("r"), const("shape"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The same Reshape further up; a 0 in t would copy a dim of f(x)."""
        first = inner(match, "r", *_RESHAPING)
        if first is None:
            return None
        copies = (match.array("shape") == 0).any() and not g.attribute(match.root, "allowzero", 0)
        match.require(not copies, "a 0 of the target shape copies a dim of the intermediate")
        return match.op("Reshape", [first.inputs[0], match["shape"]], list(match.root.attributes.values()))


class ReshapeAndBack(Rule):
    """f(h(x)) = x for f and h that change only the shape, when it ends as it began."""

    pattern = op(_RESHAPING, any_("r"), maybe("how"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """x, when its dims are proved, or the axes say so."""
        first = inner(match, "r", *_RESHAPING)
        if first is None or first.inputs[0] is None:
            return None
        squeezed = {first.op_type, match.root.op_type} == {"Squeeze", "Unsqueeze"}
        if squeezed and (axes := axes_of(first)) is not None and axes == axes_of(match.root):
            return first.inputs[0]
        return first.inputs[0] if same_dims(match, first.inputs[0], match.root.outputs[0]) else None


def axes_of(node: ir.Node) -> list[int] | None:
    """The constant axes of a Squeeze or Unsqueeze: an attribute until opset 12, then an input.

    ``None`` when they are computed, left out, or none at all, which a Squeeze takes for all axes of 1.
    """
    given = g.attribute(node, "axes")
    if given is None and len(node.inputs) > 1:
        given = g.array(node.inputs[1])
    return None if given is None or not np.size(given) else [int(axis) for axis in np.ravel(given)]


class UnsqueezeOfUnsqueeze(Rule):
    """Unsqueeze(Unsqueeze(x, a), b) = Unsqueeze(x, b ∪ a′), where a′ are the axes a as b has moved them."""

    pattern = op("Unsqueeze", op("Unsqueeze", any_("x"), const("a"), node="first"), const("b"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """One Unsqueeze; axes that count from the end would need the rank."""
        a, b = match.array("a").ravel().tolist(), match.array("b").ravel().tolist()
        match.require(min([*a, *b], default=0) >= 0, "negative axes")
        axes = np.array(sorted([*b, *self._moved(a, b)]), np.int64)
        return match.op("Unsqueeze", [match["x"], match.constant(axes, f"{match.root.outputs[0].name}_axes")])

    @staticmethod
    def _moved(a: list[int], b: list[int]) -> list[int]:
        free = [place for place in range(max(a, default=0) + len(b) + 1) if place not in b]
        return [free[axis] for axis in a]


# Every value of the key can be held by its values exactly.
_INTEGERS = {
    "UINT8": 8,
    "UINT16": 16,
    "UINT32": 32,
    "INT8": 7,
    "INT16": 15,
    "INT32": 31,
    "INT64": 63,
    "BOOL": 1,
}
_MANTISSA = {"FLOAT16": 11, "BFLOAT16": 8, "FLOAT": 24, "DOUBLE": 53}
_EXPONENT = {"FLOAT16": 5, "BFLOAT16": 8, "FLOAT": 8, "DOUBLE": 11}


def holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether a type can hold every value of another one exactly (4-bit and 8-bit float types: never)."""
    a, b = wide.name, narrow.name
    if a == b:
        return True
    if b in _MANTISSA:
        return a in _MANTISSA and _MANTISSA[a] >= _MANTISSA[b] and _EXPONENT[a] >= _EXPONENT[b]
    if b not in _INTEGERS:
        return False
    if a in _MANTISSA:
        return a != "FLOAT16" and _MANTISSA[a] >= _INTEGERS[b]
    signs_fit = not b.startswith("INT") or a.startswith("INT")
    return a in _INTEGERS and a != "BOOL" and signs_fit and _INTEGERS[a] >= _INTEGERS[b]


class CastOfCast(Rule):
    """Cast(Cast(x, a), b) = Cast(x, b) when type a holds every value of x.

    Out of range, conversions to integers depend on where they come from, so b must hold every x, too, or
    all three be integers, or b be a float.
    """

    pattern = op("Cast", any_("c"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """One Cast, or x when it ends in its own type."""
        first = inner(match, "c", "Cast")
        dtype = None if first is None else match.run.shapes(match.model).dtype(first.inputs[0])
        if first is None or dtype is None:
            return None
        middle, last = (ir.DataType(g.attribute(node, "to")) for node in (first, match.root))
        match.require(holds(middle, dtype), f"{middle.name} may lose what {dtype.name} holds")
        integers = all(found.name in _INTEGERS for found in (dtype, middle, last)) and last.name != "BOOL"
        safe = holds(last, dtype) or last.name in _MANTISSA or integers
        match.require(safe, f"{dtype.name} and {middle.name} may become different {last.name}")
        if dtype == last:
            return first.inputs[0]
        return match.op("Cast", first.inputs[:1], list(match.root.attributes.values()))


class DoubleNegation(Rule):
    """f(f(x)) = x for Not, Neg and BitwiseNot."""

    pattern = op(("Not", "Neg", "BitwiseNot"), any_("n"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """x."""
        first = inner(match, "n", match.root.op_type)
        return None if first is None else first.inputs[0]


class SliceOfSlice(Rule):
    """x[axis i: a:b][axis j: c:d] = x[axis i: a:b, axis j: c:d] for different axes."""

    pattern = op(
        "Slice",
        op(
            "Slice",
            any_("x"),
            const("s1"),
            const("e1"),
            const("a1", optional=True),
            const("p1", optional=True),
        ),
        const("s2"),
        const("e2"),
        const("a2", optional=True),
        const("p2", optional=True),
    )
    names: ClassVar = ("starts", "ends", "axes", "steps")

    def rewrite(self, match: Match) -> ir.Value | None:
        """One Slice over all the axes."""
        one, two = self._ranges(match, "1"), self._ranges(match, "2")
        match.require(one is not None and two is not None, "negative axes of an unknown rank")
        assert one is not None and two is not None
        match.require(set(one[2]).isdisjoint(two[2]), "both slice one axis")
        name = match.root.outputs[0].name
        joined = [np.concatenate(pair).astype(np.int64) for pair in zip(one, two, strict=True)]
        given = [
            match.constant(data, f"{name}_{what}") for data, what in zip(joined, self.names, strict=True)
        ]
        return match.op("Slice", [match["x"], *given])

    @staticmethod
    def _ranges(match: Match, which: str) -> tuple[Array, Array, Array, Array] | None:
        """Starts, ends, axes from the front and steps of one of the Slices."""
        starts, ends = match.array(f"s{which}"), match.array(f"e{which}")
        axes = np.arange(len(starts)) if match.get(f"a{which}") is None else match.array(f"a{which}")
        steps = np.ones_like(starts) if match.get(f"p{which}") is None else match.array(f"p{which}")
        if (axes < 0).any():
            rank = match.run.shapes(match.model).rank(match["x"])
            if rank is None:
                return None
            axes = axes % rank
        return starts, ends, axes, steps


@dataclass(frozen=True)
class MergeChains(RulePass):
    """Merge neighbouring Transposes, Reshapes, Squeezes, Casts, Slices and negations."""

    name = "merge-chains"
    rules = (
        TransposeOfTranspose,
        ReshapeAndBack,
        ReshapeOfReshape,
        UnsqueezeOfUnsqueeze,
        CastOfCast,
        DoubleNegation,
        SliceOfSlice,
    )
