"""Operators that pick parts of an axis: Slice, and the family of Gather and Scatter."""

from __future__ import annotations

import numpy as np

from graphopt import graph as g
from graphopt_passes.axes.edits import Edit, follows
from graphopt_passes.axes.site import Site, rule
from graphopt_passes.axes.space import Side


@rule("Slice")
def _slice(site: Site) -> None:
    """Element j of y is element start + j of x; axes that are stepped over stay."""
    x, y = site.input(), site.output()
    ranges = _ranges(site, x)
    for axis in range(x.rank):
        part = ranges.get(axis, slice(None))
        if axis not in ranges:
            site.same(x, axis, y, axis)
        elif part is None or not len(x.ids(axis)):
            for side in (x, y):
                site.freeze(side, "slices it with steps, or by bounds that are not known", [axis])
        else:
            site.unite(y.ids(axis), x.ids(axis)[part])


def _ranges(site: Site, x: Side) -> dict[int, slice | None]:
    """The part that is taken of each axis that is named; ``None`` where no cut could follow."""
    starts, ends = _bounds(site, 1, "starts"), _bounds(site, 2, "ends")
    axes = site.at.axes(3, x.rank)
    axes = list(range(len(site.at.get(1).vector or starts or ()))) if axes is None else axes
    steps = site.at.ints(4, "steps") or [1] * len(axes)
    if starts is None or ends is None:
        return dict.fromkeys(axes)
    return {axis: slice(starts[i], ends[i]) if steps[i] == 1 else None for i, axis in enumerate(axes)}


def _bounds(site: Site, index: int, name: str) -> list[int] | None:
    """Bounds that are constants, for only those can follow a cut."""
    if name in site.node.attributes:
        return list(site.attr(name))
    found = site.constant(index)
    return None if found is None else [int(bound) for bound in found]


@follows("Slice")
def _state_bounds(edit: Edit) -> None:
    """The bounds count the elements that stay."""
    stated = "starts" in edit.node.attributes
    old = [edit.attr(name) if stated else g.array(edit.node.inputs[i]) for i, name in _BOUNDS]
    if any(bounds is None for bounds in old):
        return
    for (index, name), was in zip(_BOUNDS, old, strict=True):
        new = np.array(was)
        for i, axis in enumerate(_axes(edit, len(new))):
            kept = edit.kept(0, axis)
            if kept is not None and (place := _place(int(new[i]), edit.size(0, axis))) is not None:
                new[i] = np.searchsorted(kept, place)
        if (new != was).any():
            edit.set(name, new.tolist()) if stated else edit.put(index, new)


def _place(bound: int, size: int) -> int | None:
    """Where a bound lies, counted from the front; ``None`` if it is beyond the end, and so still will be."""
    return None if bound >= size else max(bound + size * (bound < 0), 0)


_BOUNDS = ((1, "starts"), (2, "ends"))


def _axes(edit: Edit, count: int) -> list[int]:
    given = edit.node.inputs[3] if len(edit.node.inputs) > 3 else None
    axes = edit.attr("axes") if given is None else g.array(given)
    return list(range(count)) if axes is None else [int(axis) % edit.rank() for axis in axes]


@rule("Gather")
def _gather(site: Site) -> None:
    """Element j of y is element i[j] of x if i is a constant; else any element of x may be asked for."""
    x, indices, y = site.input(0), site.input(1), site.output()
    axis = int(site.attr("axis", 0)) % x.rank
    _beside(site, x, y, axis, indices.rank)
    _look_up(site, x, axis)
    if site.is_fixed(0) and not site.is_fixed(1):
        for other in range(x.rank):
            if other != axis:
                site.produce(0, other)
    for i in range(indices.rank):
        if not site.is_constant(1):
            site.same(indices, i, y, axis + i)


def _beside(site: Site, x: Side, y: Side, axis: int, count: int) -> None:
    for other in range(x.rank):
        if other != axis:
            site.same(x, other, y, other if other < axis else other - 1 + count)


def _look_up(site: Site, x: Side, axis: int) -> None:
    numbers, y = site.constant(1), site.output()
    if numbers is None or not len(x.ids(axis)):
        return site.freeze(x, "picks from it at run time", [axis])
    places = numbers.astype(np.int64) % len(x.ids(axis))
    if places.ndim == 1:
        return site.unite(y.ids(axis), x.ids(axis)[places])
    site.freeze_elements(
        x.ids(axis)[places].ravel(), "picks one of it" if not places.ndim else "picks from it"
    )
    return site.freeze(y, "picks from it", range(axis, axis + places.ndim))


@follows("Gather")
def _renumber(edit: Edit) -> None:
    """Indices count the elements that stay."""
    rank = len(edit.dims(edit.before.inputs[0]))
    axis = int(edit.attr("axis", 0)) % rank
    kept, picked = edit.kept(0, axis), g.array(edit.node.inputs[1])
    if kept is None or picked is None:
        return
    made = edit.made(axis) if picked.ndim == 1 else None
    places = (picked % edit.size(0, axis)) if made is None else (picked % edit.size(0, axis))[made]
    edit.put(1, np.searchsorted(kept, places).astype(picked.dtype))


@rule("GatherElements", "GatherND", "ScatterElements", "ScatterND", "Scatter")
def _scattered(site: Site) -> None:
    site.freeze_all("picks elements at run time")


@rule("ReverseSequence")
def _reverse(site: Site) -> None:
    x = site.input()
    site.same_axes(x, site.output())
    site.freeze(x, "reverses it", [int(site.attr("batch_axis", 1)), int(site.attr("time_axis", 0))])
