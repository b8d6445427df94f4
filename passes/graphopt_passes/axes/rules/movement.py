"""Operators that move whole axes, or put parts of one axis side by side."""

from __future__ import annotations

import numpy as np

from graphopt.rewrite import RefusedError
from graphopt_passes.axes.edits import Edit, follows
from graphopt_passes.axes.site import Site, rule


@rule("Transpose")
def _transpose(site: Site) -> None:
    x, y = site.input(), site.output()
    for to, axis in enumerate(site.attr("perm") or range(x.rank)[::-1]):
        site.same(x, axis, y, to)


@rule("Squeeze")
def _squeeze(site: Site) -> None:
    x, y = site.input(), site.output()
    axes = site.at.axes(1, x.rank) or [axis for axis, dim in enumerate(x.dims) if dim == 1]
    if x.rank - len(axes) != y.rank:
        raise RefusedError("its axes are not known")
    rest = [axis for axis in range(x.rank) if axis not in axes]
    for to, axis in enumerate(rest):
        site.same(x, axis, y, to)


@rule("Unsqueeze")
def _unsqueeze(site: Site) -> None:
    x, y = site.input(), site.output()
    axes = site.at.axes(1, y.rank)
    if axes is None or x.rank + len(axes) != y.rank:
        raise RefusedError("its axes are not known")
    for axis, to in enumerate(to for to in range(y.rank) if to not in axes):
        site.same(x, axis, y, to)


@rule("Concat")
def _concat(site: Site) -> None:
    """Elements lie behind those of the operands before."""
    y = site.output()
    axis, start = int(site.attr("axis", 1)) % y.rank, 0
    known = all(len(side.ids(axis)) for side in (*site.inputs, y))
    for x in site.inputs:
        site.same_axes(x, y, [other for other in range(y.rank) if other != axis])
        if known:
            ids = x.ids(axis)
            site.unite(ids, y.ids(axis)[start : start + len(ids)])
            start += len(ids)
        else:
            site.freeze(x, "joins it with what has an unknown length", [axis])
    if not known:
        site.freeze(y, "joins it with what has an unknown length", [axis])


@rule("Split")
def _split(site: Site) -> None:
    """The same as Concat, backwards."""
    x, start = site.input(), 0
    axis = int(site.attr("axis", 0)) % x.rank
    parts = [site.output(i) for i in range(len(site.node.outputs))]
    known = len(x.ids(axis)) and all(len(y.ids(axis)) for y in parts)
    if not known or (site.has(1) and not site.is_constant(1)):
        raise RefusedError("its sizes are not known")
    for y in parts:
        site.same_axes(x, y, [other for other in range(x.rank) if other != axis])
        ids = y.ids(axis)
        site.unite(ids, x.ids(axis)[start : start + len(ids)])
        start += len(ids)


@follows("Split")
def _state_parts(edit: Edit) -> None:
    """Sizes are stated, since even parts may have become uneven."""
    x = edit.dims(edit.before.inputs[0])
    axis = int(edit.attr("axis", 0)) % len(x)
    if edit.kept(0, axis) is None:
        return
    sizes = [_size(edit, index, axis) for index in range(len(edit.before.outputs))]
    edit.node.attributes.pop("num_outputs", None)
    if edit.opset < 13:
        edit.set("split", sizes)
    else:
        edit.put(1, np.array(sizes, np.int64))


def _size(edit: Edit, index: int, axis: int) -> int:
    kept = edit.made(axis, index)
    dim = edit.dims(edit.before.outputs[index])[axis] if kept is None else len(kept)
    assert isinstance(dim, int)
    return dim
