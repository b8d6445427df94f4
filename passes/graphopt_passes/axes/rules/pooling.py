"""Pooling, resizing and padding of images: channels pass, and what is slid over cannot be cut."""

from __future__ import annotations

import numpy as np

from graphopt.rewrite import RefusedError
from graphopt_passes.axes.edits import Edit, follows
from graphopt_passes.axes.rules.sizes import state
from graphopt_passes.axes.site import Site, rule


@rule("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _pool(site: Site) -> None:
    x, y = site.input(), site.output()
    if site.has_output(1):
        raise RefusedError("its indices are used")
    site.same_axes(x, y, (0, 1))
    for side in (x, y):
        site.freeze(side, "pools over it", range(2, side.rank))


@rule("Resize", "Upsample")
def _resize(site: Site) -> None:
    """An axis whose length stays passes; sizes that are stated follow."""
    x, y = site.input(), site.output()
    if site.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise RefusedError("crops")
    for axis in range(x.rank):
        if x.dims[axis] == y.dims[axis] and _keeps(site, axis, x.rank):
            site.same(x, axis, y, axis)
        else:
            for side in (x, y):
                site.freeze(side, "resizes it", [axis])


def _keeps(site: Site, axis: int, rank: int) -> bool:
    """Whether the scale of an axis is 1, or its size is stated."""
    axes = list(site.attr("axes", range(rank)))
    if axis not in [given % rank for given in axes]:
        return True
    at = [given % rank for given in axes].index(axis)
    scales = site.attr("scales") if "scales" in site.node.attributes else site.constant(_scales(site))
    return scales is None or not len(scales) or bool(scales[at] == 1)


def _scales(site: Site) -> int:
    return 1 if site.node.op_type == "Upsample" or site.at.opset < 11 else 2


@follows("Resize")
def _sizes(edit: Edit) -> None:
    if len(edit.node.inputs) > 3 and edit.node.inputs[3] is not None:
        axes = edit.attr("axes")
        state(edit, 3, axes and [axis % edit.rank() for axis in axes])


@rule("Pad")
def _pad(site: Site) -> None:
    """Zeros beside channels stay when channels go."""
    x, y = site.input(), site.output()
    pads = _pads(site, x.rank)
    for axis in range(x.rank):
        before, after = pads[axis]
        if (before, after) == (0, 0):
            site.same(x, axis, y, axis)
        elif len(x.ids(axis)) and _is_constant(site) and min(before, after) >= 0:
            site.unite(x.ids(axis), y.ids(axis)[before : before + len(x.ids(axis))])
            site.freeze_elements(np.delete(y.ids(axis), np.s_[before : before + len(x.ids(axis))]), "pads it")
        else:
            site.freeze(x, "pads it", [axis])
            site.freeze(y, "pads it", [axis])


def _pads(site: Site, rank: int) -> list[tuple[int, int]]:
    """How much is padded before and behind each axis; -1 where it is not known."""
    stated = "pads" in site.node.attributes
    given = list(site.attr("pads")) if stated else list(site.at.get(1).vector or [])
    axes = site.at.axes(3, rank) or list(range(rank))
    if not given:
        return [(-1, -1)] * rank
    numbers = [pad if isinstance(pad, int) else -1 for pad in given]
    found = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        found[axis] = numbers[i], numbers[i + len(axes)]
    return found


def _is_constant(site: Site) -> bool:
    mode = site.attr("mode", "constant")
    return str(mode) == "constant"


@rule("DepthToSpace")
def _depth_to_space(site: Site) -> None:
    """A channel of y comes from b² channels of x."""
    x, y, side = site.input(), site.output(), int(site.attr("blocksize"))
    deep = str(site.attr("mode", "DCR")) == "DCR"
    if not len(x.ids(1)):
        raise RefusedError("its number of channels is not known")
    parts = x.ids(1).reshape(side * side, -1) if deep else x.ids(1).reshape(-1, side * side).T
    site.unite(parts, y.ids(1))
    _move_pixels(site)


@rule("SpaceToDepth")
def _space_to_depth(site: Site) -> None:
    """A channel of x becomes b² channels of y, those of one pixel together."""
    x, y, side = site.input(), site.output(), int(site.attr("blocksize"))
    if not len(x.ids(1)):
        raise RefusedError("its number of channels is not known")
    site.unite(y.ids(1).reshape(side * side, -1), x.ids(1))
    _move_pixels(site)


def _move_pixels(site: Site) -> None:
    x, y = site.input(), site.output()
    site.same(x, 0, y, 0)
    for side in (x, y):
        site.freeze(side, "moves pixels", range(2, side.rank))
