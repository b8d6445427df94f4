"""Normalizations: parameters follow the channels; what is normalized over cannot be cut."""

from __future__ import annotations

import numpy as np

from graphopt.rewrite import RefusedError
from graphopt_passes.axes.edits import Edit, follows
from graphopt_passes.axes.site import Site, rule
from graphopt_passes.axes.space import Side

_OVER = "normalizes over it"


@rule("BatchNormalization")
def _batch(site: Site) -> None:
    if site.attr("training_mode", 0) or any(site.has_output(i) for i in range(1, len(site.node.outputs))):
        raise RefusedError("is in training mode")
    x = site.input()
    site.same_axes(x, site.output())
    for index in range(1, 5):
        site.same(site.input(index), 0, x, 1)


@rule("InstanceNormalization")
def _instance(site: Site) -> None:
    x, y = site.input(), site.output()
    site.same_axes(x, y)
    for index in (1, 2):
        site.same(site.input(index), 0, x, 1)
    site.freeze(x, _OVER, range(2, x.rank))


@rule("GroupNormalization")
def _group(site: Site) -> None:
    """Whole groups can go, since its channels share a mean; until opset 21 scales are per group."""
    x, blocks = site.input(), int(site.attr("num_groups"))
    site.same_axes(x, site.output())
    site.freeze(x, _OVER, range(2, x.rank))
    if not len(x.ids(1)):
        raise RefusedError("its number of channels is not known")
    rows = x.ids(1).reshape(blocks, -1)
    site.unite(rows, rows[:, :1])
    for index in (1, 2):
        ids = site.input(index).ids(0)
        site.unite(ids, rows[:, 0] if len(ids) == blocks else x.ids(1))


@follows("GroupNormalization")
def _count_groups(edit: Edit) -> None:
    x, blocks = edit.kept(0, 1), int(edit.attr("num_groups"))
    if x is not None:
        edit.set("num_groups", len(np.unique(x // (edit.size(0, 1) // blocks))))


@rule("LayerNormalization", "RMSNormalization")
def _layer(site: Site) -> None:
    x = site.input()
    first = int(site.attr("axis", -1)) % x.rank
    _over(site, x, range(first, x.rank))
    for side in site.inputs[1:]:
        site.freeze(side, _OVER)
    for output in site.outputs[1:]:
        site.same_axes(x, output, range(first))


def _over(site: Site, x: Side, axes: range | list[int]) -> None:
    site.same_axes(x, site.output())
    site.freeze(x, _OVER, list(axes))


@rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(site: Site) -> None:
    """Until opset 13 over all axes from one on."""
    x = site.input()
    old = site.at.opset < 13
    axis = int(site.attr("axis", 1 if old else -1)) % x.rank
    _over(site, x, range(axis, x.rank if old else axis + 1))


@rule("LRN")
def _lrn(site: Site) -> None:
    _over(site, site.input(), [1])


@rule("LpNormalization")
def _lp(site: Site) -> None:
    x = site.input()
    _over(site, x, [int(site.attr("axis", -1)) % x.rank])


@rule("MeanVarianceNormalization")
def _mean_variance(site: Site) -> None:
    x = site.input()
    _over(site, x, [axis % x.rank for axis in site.attr("axes", (0, 2, 3))])
