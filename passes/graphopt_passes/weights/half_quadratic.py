"""Blocks of integers whose large errors count less, found without data (HQQ, Badri & Shaji 2023).

Few weights are far larger than others, and matter more than their number says. With a norm of p < 1 in place
of squares, the grid serves the many well and leaves to the few what error they have. Split by an auxiliary
variable e for the error itself, each half is solved exactly:

    e = shrink(w − ŵ)          shrink(x) = sign(x)·max(|x| − |x|^(p−1)/β, 0)
    z = mean over the block of q − (w − e)/s

while β grows. Here zero points are whole numbers, as kernels want them, and scales are fitted as well:
s = Σ (w − e)·(q − z) / Σ (q − z)².
"""

from __future__ import annotations

import numpy as np

from graphopt_passes.quantize.scheme import LEAST_SCALE, Array
from graphopt_passes.weights.blocks import Blocked, Floats, Grid, blocked, grid_of, levels, on_grid, parts

_NORM, _BETA, _GROWTH, _ROUNDS = 0.7, 10.0, 1.01, 20


def half_quadratic(w: Array, bits: int, block: int, *, symmetric: bool) -> Blocked:
    """The weight on grids of least error in a norm that forgives a few large ones.

    Args:
        w: rows [channels, columns], floating point; read part by part.
        bits: 4 or 8.
        block: numbers of a block.
        symmetric: whether zero points are fixed in the middle.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    start = grid_of(w, bits, block, symmetric=symmetric, clips=(1.0,))
    scales, zeros = np.empty_like(start.scales), np.empty_like(start.zeros)
    for part, rows in parts(w):
        scales[part], zeros[part] = _solve(blocked(rows, block), start.of(part), symmetric)
    return on_grid(w, Grid(scales, zeros, bits, block))


def _solve(blocks: Floats, grid: Grid, symmetric: bool) -> tuple[Array, Array]:
    scales, zeros = grid.scales[..., None], grid.zeros[..., None].astype(np.float32)
    most, beta = np.float32(levels(grid.bits)), _BETA
    best, least = (scales, zeros), np.full(scales.shape, np.inf, np.float32)
    unit = np.abs(blocks).mean() or np.float32(1)
    for _ in range(_ROUNDS):
        integers = np.clip(np.rint(blocks / scales) + zeros, 0, most)
        steps = integers - zeros
        wrong = blocks - steps * scales
        error = (np.abs(wrong) ** _NORM).sum(axis=2, keepdims=True)
        wins = error < least
        best = np.where(wins, scales, best[0]), np.where(wins, zeros, best[1])
        least = np.where(wins, error, least)
        aims = blocks - unit * _shrunk(wrong / unit, beta)
        if not symmetric:
            zeros = np.clip(np.rint((integers - aims / scales).mean(axis=2, keepdims=True)), 0, most)
            steps = integers - zeros
        energy = np.square(steps).sum(axis=2, keepdims=True)
        found = np.divide(
            (aims * steps).sum(axis=2, keepdims=True), energy, out=scales.copy(), where=energy > 0
        )
        scales = np.where(found > LEAST_SCALE, found, scales)
        beta *= _GROWTH
    return best[0][..., 0].astype(np.float32), best[1][..., 0].astype(np.uint8)


def _shrunk(x: Floats, beta: float) -> Floats:
    size = np.abs(x)
    with np.errstate(divide="ignore"):
        cut = np.where(size > 0, size ** np.float32(_NORM - 1), 0) / np.float32(beta)
    return np.asarray(np.sign(x) * np.maximum(size - cut, 0), np.float32)
