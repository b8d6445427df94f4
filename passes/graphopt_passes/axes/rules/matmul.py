"""Products of matrices: y[…, i, j] = Σ_k a[…, i, k] * b[…, k, j]."""

from __future__ import annotations

from graphopt_passes.axes.site import Site, rule
from graphopt_passes.axes.space import Side


@rule("Gemm")
def _gemm(site: Site) -> None:
    """y = α a' b' + β c, both sides transposed on request; c broadcasts to y."""
    a, b, y = site.input(0), site.input(1), site.output()
    rows, summed = (1, 0) if site.attr("transA", 0) else (0, 1)
    over, columns = (1, 0) if site.attr("transB", 0) else (0, 1)
    site.same(a, rows, y, 0)
    site.same(b, columns, y, 1)
    _sum(site, (a, summed), (b, over))
    if site.is_fixed(1):
        site.produce(1, columns)
    if site.has(2):
        _fit(site, site.input(2), y)


def _sum(site: Site, a: tuple[Side, int], b: tuple[Side, int]) -> None:
    """Axes that are summed over are one; zeros in a weight, or else in a, take an element out of the sum."""
    site.same(*a, *b)
    site.consume(*((1, b[1]) if site.is_fixed(1) else (0, a[1])))


def _fit(site: Site, c: Side, y: Side) -> None:
    """c broadcasts to y; a dim of 1 is not cut."""
    for axis in range(c.rank):
        if c.dims[axis] != 1:
            site.same(c, axis, y, axis + y.rank - c.rank)


@rule("MatMul")
def _matmul(site: Site) -> None:
    """Batch axes broadcast; vectors have no rows or no columns."""
    a, b, y = site.input(0), site.input(1), site.output()
    _sum(site, (a, a.rank - 1), (b, max(b.rank - 2, 0)))
    columns = b.rank > 1
    if a.rank > 1:
        site.same(a, a.rank - 2, y, y.rank - 1 - columns)
    if columns:
        site.same(b, b.rank - 1, y, y.rank - 1)
    for index, side in enumerate((a, b)):
        _batch(site, side, y, (a.rank > 1) + columns)
        if site.is_fixed(index) and side.rank > 1:
            site.produce(index, side.rank - 1 if index else side.rank - 2)


def _batch(site: Site, side: Side, y: Side, matrix: int) -> None:
    """Batch axes broadcast; of heads, the batches of attention, whole ones are cut."""
    count, batches = max(side.rank - 2, 0), y.rank - matrix
    for axis in range(count):
        if side.dims[axis] != 1:
            site.same(side, axis, y, axis + batches - count)
            if not (site.is_fixed(0) or site.is_fixed(1)):
                site.favour(side, axis)
