"""QuantizeLinear and DequantizeLinear: scales and zero points per channel follow the channels."""

from __future__ import annotations

from graphopt.rewrite import RefusedError
from graphopt_passes.axes.site import Site, rule


@rule("QuantizeLinear", "DequantizeLinear")
def _quantize(site: Site) -> None:
    x = site.input()
    site.same_axes(x, site.output())
    for index in (1, 2):
        if not site.has(index):
            continue
        grid = site.input(index)
        if grid.rank == 1 and grid.dims != (1,):
            site.same(grid, 0, x, int(site.attr("axis", 1)) % x.rank)
        elif grid.rank > 1:
            _blocks(site, index)


def _blocks(site: Site, index: int) -> None:
    """One scale for a block of elements along an axis, of which none can go."""
    x, grid = site.input(), site.input(index)
    if grid.rank != x.rank:
        raise RefusedError("its scales have another rank")
    along = int(site.attr("axis", 1)) % x.rank
    for side in (x, grid):
        site.freeze(side, "shares a scale among blocks of it", [along])
    site.same_axes(x, grid, [axis for axis in range(x.rank) if axis != along])


@rule("DynamicQuantizeLinear")
def _dynamic(site: Site) -> None:
    """The grid depends on all elements, so that none can go without a change of the others."""
    site.freeze_all("its range depends on all elements")
