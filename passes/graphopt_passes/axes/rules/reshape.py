"""Reshape and Flatten: dims split and merge, and of several that meet only one can carry a cut.

Dims are matched from both ends by their products. Where some meet, all are written as products of the same
factors: with (c, h, w) → c·h·w these are c, h and w, with c → (heads, d) heads and d. One factor carries: an
element of the others has no meaning alone. Element i of a dim lies at (i / inner) mod n of a factor of size n
that has ``inner`` elements behind it in that dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import numpy as np

from graphopt.shapes.symbols import Dim, Symbols
from graphopt_passes.axes.edits import Edit, follows
from graphopt_passes.axes.elements import Ids
from graphopt_passes.axes.rules.sizes import require_stated, state
from graphopt_passes.axes.site import Site, rule
from graphopt_passes.axes.space import Option, Side

Segment = tuple[list[int], list[int]]


@rule("Flatten", "Reshape")
def _reshape(site: Site) -> None:
    x, y = site.input(), site.output()
    if site.node.op_type == "Reshape" and "shape" not in site.node.attributes:
        require_stated(site, 1)
    matched, rest = segments(site.at.symbols, x.dims, y.dims)
    for ins, outs in matched:
        if len(ins) == len(outs) == 1:
            site.same(x, ins[0], y, outs[0])
        else:
            _meet(site, x, y, ins, outs)
    for side, axes in zip((x, y), rest, strict=True):
        site.freeze(side, "mixes it with others", axes)


@follows("Reshape")
def _state_target(edit: Edit) -> None:
    if "shape" in edit.node.attributes:
        target = list(edit.attr("shape"))
        for axis, size in enumerate(target):
            kept = edit.made(axis)
            target[axis] = size if kept is None or size == -1 else len(kept)
        edit.set("shape", target)
    else:
        state(edit, 1)


def segments(
    symbols: Symbols, before: Sequence[Dim], after: Sequence[Dim]
) -> tuple[list[Segment], tuple[list[int], list[int]]]:
    """Which dims become which, and those on both sides for which that is unknown; dims of 1 are left out."""
    ins, outs = ([axis for axis, dim in enumerate(dims) if dim != 1] for dims in (before, after))
    front, ins, outs = _matched(symbols, before, after, ins, outs)
    back, ins, outs = _matched(symbols, before, after, ins[::-1], outs[::-1])
    turned = [(a[::-1], b[::-1]) for a, b in back]
    return front + turned[::-1], (ins[::-1], outs[::-1])


def _matched(
    symbols: Symbols, before: Sequence[Dim], after: Sequence[Dim], ins: list[int], outs: list[int]
) -> tuple[list[Segment], list[int], list[int]]:
    """The shortest runs of dims with equal products, one behind the other, and what is left."""
    found: list[Segment] = []
    while segment := _first(symbols, before, after, ins, outs):
        found.append(segment)
        ins, outs = ins[len(segment[0]) :], outs[len(segment[1]) :]
    return found, ins, outs


def _first(
    symbols: Symbols, before: Sequence[Dim], after: Sequence[Dim], ins: list[int], outs: list[int]
) -> Segment | None:
    i, j = 1, 1
    while i <= len(ins) and j <= len(outs):
        a = symbols.product(tuple(before[axis] for axis in ins[:i]))
        b = symbols.product(tuple(after[axis] for axis in outs[:j]))
        if a == b:
            return ins[:i], outs[:j]
        if _divides(symbols, a, b):
            i += 1
        elif _divides(symbols, b, a) or (isinstance(a, int) and isinstance(b, int) and b < a):
            j += 1
        elif isinstance(a, int) and isinstance(b, int):
            i += 1
        else:
            return None
    return None


def _divides(symbols: Symbols, a: Dim, b: Dim) -> bool:
    return a != 0 and symbols.quotient(b, a) is not None


def _meet(site: Site, x: Side, y: Side, ins: list[int], outs: list[int]) -> None:
    factors = _factors([x.dims[axis] for axis in ins], [y.dims[axis] for axis in outs])
    if factors is None:
        site.freeze(x, "mixes it with others", ins)
        site.freeze(y, "mixes it with others", outs)
        return
    parts = [
        (side.ids(axis), span)
        for side, axes in ((x, ins), (y, outs))
        for axis, span in zip(axes, _spans(factors, [len(side.ids(axis)) for axis in axes]), strict=True)
    ]
    site.choose(*(_carry(site, parts, factors, number) for number in range(len(factors))))


def _factors(before: list[Dim], after: list[Dim]) -> list[int] | None:
    """The factors that all dims on both sides are products of, or ``None``."""
    sides = [[dim for dim in dims if isinstance(dim, int) and dim > 0] for dims in (before, after)]
    if sides != [before, after]:
        return None
    ends = sorted({prod(dims[:i]) for dims in sides for i in range(len(dims) + 1)})
    if any(b % a for a, b in pairwise(ends)):
        return None
    return [b // a for a, b in pairwise(ends)]


def _spans(factors: list[int], sizes: list[int]) -> list[range]:
    """Which factors make up each dim."""
    spans, start = [], 0
    for size in sizes:
        end = start
        while prod(factors[start:end]) < size:
            end += 1
        spans.append(range(start, end))
        start = end
    return spans


def _carry(site: Site, parts: list[tuple[Ids, range]], factors: list[int], number: int) -> Option:
    """The option that one factor carries cuts; all dims that it is no part of stay."""
    elements = site.space.elements
    places = [(ids, _places(factors, span, number)) for ids, span in parts]

    def count() -> int:
        stays = np.zeros(factors[number], np.bool_)
        for ids, at in places:
            if at is not None:
                np.logical_or.at(stays, at, elements.is_frozen(ids))
        return int((~stays).sum())

    def favoured() -> bool:
        return any(at is not None and elements.is_favoured(ids) for ids, at in places)

    def apply() -> None:
        units = elements.add(factors[number])
        for ids, at in places:
            if at is None:
                site.freeze_elements(ids, "mixes it with others")
            else:
                elements.unite(ids, units[at])

    return Option(count, favoured, apply)


def _places(factors: list[int], span: range, number: int) -> Ids | None:
    """Where the elements of a dim lie along a factor; ``None`` if it is no part of the dim."""
    if number not in span:
        return None
    size, inner = prod(factors[i] for i in span), prod(factors[i] for i in span if i > number)
    return np.asarray(np.arange(size) // inner % factors[number], np.int64)
