"""Reductions: axes beside those that are reduced pass; sums of zeros can be cut, means and maxima cannot."""

from __future__ import annotations

from graphopt.rewrite import RefusedError
from graphopt_passes.axes.site import Site, rule
from graphopt_passes.axes.space import Side

SUMS = ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")
OTHERS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")


@rule(*SUMS, *OTHERS)
def _reduce(site: Site) -> None:
    x = site.input()
    axes = _axes(site, x)
    for axis in axes:
        if site.node.op_type in SUMS:
            site.consume(0, axis)
        else:
            site.freeze(x, "reduces it", [axis])
    _pass(site, x, axes)


def _axes(site: Site, x: Side) -> list[int]:
    axes = site.at.axes(1, x.rank)
    if axes:
        return axes
    return [] if site.attr("noop_with_empty_axes", 0) else list(range(x.rank))


def _pass(site: Site, x: Side, axes: list[int]) -> None:
    y, keeps = site.output(), bool(site.attr("keepdims", 1))
    rest = [axis for axis in range(x.rank) if axis not in axes]
    for i, axis in enumerate(rest):
        site.same(x, axis, y, axis if keeps else i)


@rule("ArgMax", "ArgMin")
def _arg(site: Site) -> None:
    x = site.input()
    axis = int(site.attr("axis", 0)) % x.rank
    site.freeze(x, "gives places along it", [axis])
    _pass(site, x, [axis])


@rule("TopK")
def _top(site: Site) -> None:
    x = site.input()
    axis = int(site.attr("axis", -1)) % x.rank
    for y in site.outputs:
        site.same_axes(x, y, [other for other in range(x.rank) if other != axis])
        site.freeze(y, "sorts it", [axis])
    site.freeze(x, "sorts it", [axis])


@rule("CumSum")
def _cumulate(site: Site) -> None:
    """Later elements depend on earlier ones."""
    x = site.input()
    axis = site.at.get(1).vector
    if axis is None or not isinstance(axis[0], int):
        raise RefusedError("its axis is not known")
    site.same_axes(x, site.output())
    site.freeze(x, "adds up along it", [axis[0] % x.rank])


@rule("Trilu")
def _triangle(site: Site) -> None:
    x = site.input()
    site.same_axes(x, site.output())
    site.freeze(x, "keeps a triangle of it", [x.rank - 2, x.rank - 1])
