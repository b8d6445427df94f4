"""Draws of subgraphs and functions: If, Loop, calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import helper

from tools.fuzz.builder import FUNCTIONS, Builder, RejectedError, Scope, Value
from tools.fuzz.feeds import SIZES

Draw = Callable[[Builder], None]
_DEEPEST = 3


def body(b: Builder, draw: Draw) -> None:
    """A few nodes for an inner graph."""
    if len(b.scopes) > _DEEPEST:
        raise RejectedError
    for _ in range(b.integer(1, 6)):
        b.attempt(draw)


def result(b: Builder, scope: Scope, seen: int, like: Value | None = None) -> Value:
    """A value made in the scope, of the type of another one; a capture comes out through Identity."""
    made = [v for v in scope.values[seen:] if like is None or (v.kind, v.rank) == (like.kind, like.rank)]
    if made and b.chance(0.9):
        return b.choice(made)  # type: ignore[no-any-return]
    return b.emit("Identity", b.pick() if like is None else b.pick(like.kind, lambda v: v.rank == like.rank))


def if_(b: Builder, draw: Draw) -> None:
    """If, its branches of one type; names of the branches may be the same."""
    condition = b.pick("bool", lambda v: v.rank == 0) if b.chance(0.6) else b.constant(b.chance(0.5))
    start, seen = b.count, len(b.scope.values)
    with b.inside([]) as then:
        body(b, draw)
        out = result(b, then, seen)
    then_count, b.count = b.count, start if b.chance(0.5) else b.count
    with b.inside([]) as otherwise:
        body(b, draw)
        alternative = result(b, otherwise, seen, like=out)
    b.count = max(b.count, then_count)
    graphs = then.graph("then", [out.info()]), otherwise.graph("else", [alternative.info()])
    b.emit("If", condition, then_branch=graphs[0], else_branch=graphs[1])


def loop(b: Builder, draw: Draw) -> None:
    """Loop with one carried value and one that is stacked."""
    start = b.pick(where=lambda v: v.array.size > 0)
    trips = b.constant(np.array(b.integer(0, 3)))
    if b.chance(0.3):
        trips = b.pick("int64", lambda v: v.rank == 0)
    seen = len(b.scope.values)
    count, go_on, carried = (
        Value(b.fresh(), arrays)
        for arrays in ((np.array(0),) * len(SIZES), (np.array(True),) * len(SIZES), start.arrays)
    )
    with b.inside([count, go_on, carried]) as scope:
        body(b, draw)
        keep = b.emit("Identity", go_on)
        same = [v for v in scope.values[seen:] if v.kind == start.kind and v.shape == start.shape]
        new = b.emit("Identity", b.choice(same))
        stacked = result(b, scope, seen + 3)
    graph = scope.graph("body", [keep.info(), new.info(), stacked.info()])
    b.emit("Loop", trips, b.constant(True) if b.chance(0.5) else None, start, outputs=2, body=graph)


def function(b: Builder, draw: Draw) -> None:
    """A function and one or two calls of it."""
    if b.scope.in_function or len(b.functions) > 2:
        raise RejectedError
    given = [b.pick() for _ in range(b.integer(1, 2))]
    formal = [Value(b.fresh(), value.arrays) for value in given]
    with b.inside(formal, in_function=True) as scope:
        body(b, draw)
        out = result(b, scope, len(formal))
    made = helper.make_function(
        FUNCTIONS,
        f"f{len(b.functions)}",
        [value.name for value in formal],
        [out.name],
        scope.nodes,
        [helper.make_opsetid("", b.opset), helper.make_opsetid(FUNCTIONS, 1)],
    )
    b.functions.append(made)
    b.emit(made.name, *given, domain=FUNCTIONS)
    if b.chance(0.5):
        b.emit(made.name, *(b.pick(value.kind) for value in given), domain=FUNCTIONS)


DRAWS = {if_: 2, loop: 1.5, function: 1}
