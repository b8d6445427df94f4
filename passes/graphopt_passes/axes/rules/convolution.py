"""Convolutions: y[n, o] = Σ_c x[n, c] * w[o, c], within each group of channels.

A Conv in groups can lose whole groups, or the same channels of every group; the finer cut is chosen. Where a
group is one channel, input and output go together, and the attribute ``group`` follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.rewrite import RefusedError
from graphopt_passes.axes.edits import Edit, follows
from graphopt_passes.axes.elements import Ids
from graphopt_passes.axes.site import Site, rule
from graphopt_passes.axes.space import Option


@rule("Conv", "ConvTranspose")
def _convolve(site: Site) -> None:
    """Conv has w[o, c/g, …], ConvTranspose w[c, o/g, …]."""
    transposed = site.node.op_type == "ConvTranspose"
    x, w, y, blocks = site.input(0), site.input(1), site.output(), int(site.attr("group", 1))
    if not isinstance(x.dims[1], int) or not all(isinstance(dim, int) for dim in w.dims[:2]):
        raise RefusedError("its numbers of channels are not known")
    site.same(x, 0, y, 0)
    _slide(site)
    if site.has(2):
        site.same(site.input(2), 0, y, 1)
    site.produce(1, 1 if transposed else 0)
    if blocks > 1:
        _choose(site, _Blocks.of(site, blocks, transposed))
        return
    site.same(x, 1, w, 0 if transposed else 1)
    site.same(y, 1, w, 1 if transposed else 0)
    site.consume(1, 0 if transposed else 1)


def _slide(site: Site) -> None:
    for side in (site.input(0), site.input(1), site.output()):
        site.freeze(side, "slides over it", range(2, side.rank))


@dataclass(frozen=True)
class _Blocks:
    """Elements of a convolution in groups.

    Attributes:
        x, y: of the channels, [groups, channels of a group].
        rows: of the weight's axis 0, [groups, …].
        shared: of the weight's axis 1, which all groups share.
        transposed: whether axis 0 of the weight are channels of the input.
    """

    x: Ids
    y: Ids
    rows: Ids
    shared: Ids
    transposed: bool

    @classmethod
    def of(cls, site: Site, blocks: int, transposed: bool) -> _Blocks:
        x, y, w = site.input(0), site.output(), site.input(1)
        x_ids, y_ids, rows = (ids.reshape(blocks, -1) for ids in (x.ids(1), y.ids(1), w.ids(0)))
        return cls(x_ids, y_ids, rows, w.ids(1), transposed)


def _choose(site: Site, of: _Blocks) -> None:
    """Cut whole groups, or the same channels of every group."""
    elements = site.space.elements

    def whole() -> None:
        units = elements.add(len(of.x))
        for ids in (of.x, of.y, of.rows):
            elements.unite(ids, units[:, None])
        site.freeze_elements(of.shared, "loses whole groups only")

    def alike() -> None:
        summed, made = (of.rows[0], of.shared) if of.transposed else (of.shared, of.rows[0])
        elements.unite(of.rows, of.rows[0])
        elements.unite(of.x, summed)
        elements.unite(of.y, made)
        site.consume(1, 0 if of.transposed else 1)

    def free(axis: int) -> int:
        return min(int((~elements.is_frozen(ids).any(axis=axis)).sum()) for ids in (of.x, of.y))

    by_group = Option(lambda: free(1), lambda: False, whole)
    by_place = Option(lambda: free(0), lambda: False, alike)
    site.choose(*([by_group] if of.x.shape[1] == 1 else [by_group, by_place]))


@follows("Conv", "ConvTranspose")
def _count_blocks(edit: Edit) -> None:
    """``group`` = channels of the input / channels of a block."""
    blocks, x = int(edit.attr("group", 1)), edit.kept(0, 1)
    if blocks > 1 and x is not None:
        edit.set("group", len(np.unique(x // (edit.size(0, 1) // blocks))))
