"""From the histogram of an activation to the range that its grid covers.

What lies outside saturates, what lies inside is rounded in steps of the range / 255: each method weighs these
two losses in its own way. Zero lies on every grid, so zeros lose nothing and count in no method.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.accumulators import Bins, Extremes
from graphopt.runtime.grid_errors import Steps
from graphopt_passes.quantize.scheme import Grid

PERCENTILES = (99.99, 99.999)
_CLIPS = np.geomspace(1.0, 0.02, 64)
_SWEEPS = 3
_UNSEEN = 1e-4  # what Kullback-Leibler divergence takes for a probability of 0 (Migacz leaves it open)


@dataclass(frozen=True)
class Form:
    """What kind of grid a target wants; see :meth:`Grid.of`."""

    signed: bool = False
    symmetric: bool = False
    bits: int = 8

    def grid(self, low: float, high: float) -> Grid:
        """The grid of this kind that covers a range."""
        return Grid.of(low, high, signed=self.signed, symmetric=self.symmetric, bits=self.bits)


@dataclass(frozen=True)
class Range:
    """The real numbers from ``low`` ≤ 0 to ``high`` ≥ 0, and the name of the method that chose them."""

    low: float
    high: float
    method: str


def steps(grid: Grid) -> Steps:
    """The grid as the worker knows it."""
    least = grid.zero_point + round(grid.low / grid.scale)
    most = grid.zero_point + round(grid.high / grid.scale)
    return Steps(grid.scale, grid.zero_point, least, most)


def minmax(seen: Bins | Extremes) -> Range:
    """All that was seen, and 0."""
    return Range(min(float(np.min(seen.low)), 0.0), max(float(np.max(seen.high)), 0.0), "minmax")


def percentile(bins: Bins, percent: float) -> Range:
    """All but the share ``1 - percent / 100`` with the largest magnitudes, half of it on each side.

    Where one side is empty, the other loses the whole share. Zeros count among the elements.
    """
    sides = (bins.low < 0) + (bins.high > 0)
    cut = bins.count * (1 - percent / 100) / max(sides, 1)
    below = np.concatenate([[0], np.cumsum(bins.counts, dtype=np.float64)])
    low = float(np.interp(cut, below, bins.edges, left=bins.low))
    high = float(np.interp(below[-1] - cut, below, bins.edges))
    return _within(bins, low, high, f"percentile {percent:g}")


def mse(bins: Bins, form: Form = Form()) -> Range:
    """The range with the least mean squared error, found by clipping one side after the other.

    Clips reach from all to 2 % of a side, in steps of 6 %. Numbers are taken as spread evenly within a bin.
    """
    best = minmax(bins)
    if not bins.width:
        return Range(best.low, best.high, "mse")
    low, high, least = best.low, best.high, squared_error(bins, form.grid(best.low, best.high))
    sides = [(True, True)] if form.symmetric else [(False, bins.high > 0), (bins.low < 0, False)]
    for _ in range(_SWEEPS):
        before = least
        for at_low, at_high in filter(any, sides):
            for clip in _CLIPS[1:]:
                trial = (bins.low * clip if at_low else low), (bins.high * clip if at_high else high)
                error = squared_error(bins, form.grid(*trial))
                if error < least:
                    least, low, high = error, *trial
        if least == before:
            break
    return Range(low, high, "mse")


def squared_error(bins: Bins, grid: Grid) -> float:
    """Σ(Q(x) − x)² over a histogram.

    In the cell of the number k·s the error is r = x − k·s, whose square has the integral r³/3; a whole cell
    is s³/12. The outermost cells reach to infinity, which is saturation.
    """
    if not bins.width:
        return 0.0
    least, most = round(grid.low / grid.scale), round(grid.high / grid.scale)
    used = np.flatnonzero(bins.counts)
    part = slice(used[0], used[-1] + 1)
    edges = bins.edges[part.start : part.stop + 1]
    cell = np.clip(np.rint(edges / grid.scale), least, most)
    integral = cell * (grid.scale**3 / 12) + (edges - cell * grid.scale) ** 3 / 3
    return float(bins.counts[part] @ np.diff(integral) / bins.width)


def kl(bins: Bins, form: Form = Form()) -> Range:
    """The range whose grid keeps the most information about the distribution (Migacz, 8-bit inference, 2017).

    For every threshold t, the clipped histogram P, outliers added to its outermost bins, is compared with Q,
    its bins merged to levels of the grid and spread again over those that were not empty; the least KL(P‖Q)
    wins. An asymmetric grid covers [max(low, −t), min(high, t)], a symmetric one [−t, t].
    """
    best, found = np.inf, minmax(bins)
    for low, high in _thresholds(bins, form):
        divergence = _divergence(bins, low, high, form.grid(low, high))
        if divergence < best:
            best, found = divergence, Range(low, high, "kl")
    return Range(found.low, found.high, "kl")


def candidates(bins: Bins, form: Form = Form()) -> tuple[Range, ...]:
    """The ranges of all methods, the first of those with the same grid."""
    ranges = [minmax(bins), *(percentile(bins, p) for p in PERCENTILES), mse(bins, form), kl(bins, form)]
    by_grid: dict[Grid, Range] = {}
    for one in ranges:
        by_grid.setdefault(form.grid(one.low, one.high), one)
    return tuple(by_grid.values())


def _thresholds(bins: Bins, form: Form) -> Iterator[tuple[float, float]]:
    """Ranges from at least two bins per level, if there are so many, to all."""
    reach = max(-bins.low, bins.high)
    least = min(2 ** (form.bits - (1 if bins.low < 0 else 0)) * 2 * bins.width, reach)
    for threshold in np.geomspace(least, reach, 128) if least else ():
        yield max(bins.low, -threshold), min(bins.high, threshold)


def _divergence(bins: Bins, low: float, high: float, grid: Grid) -> float:
    """KL(P‖Q) of the clipped histogram and of its merged bins."""
    start = max(int(np.floor(low / bins.width)) - bins.first, 0)
    end = min(int(np.ceil(high / bins.width)) - bins.first, bins.counts.size)
    inside = bins.counts[start:end].astype(np.float64)
    if not inside.any():
        return np.inf
    clipped = inside.copy()
    clipped[0] += bins.counts[:start].sum()
    clipped[-1] += bins.counts[end:].sum()
    merged = _merged(inside, bins.centres[start:end], grid)
    p, q = clipped / clipped.sum(), merged / merged.sum()
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], _UNSEEN / p.size))))


def _merged(inside: NDArray[np.float64], centres: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Each bin that is not empty gets the mean of all those of its level."""
    level = np.rint(centres / grid.scale).astype(np.int64)
    level -= level[0]
    used = (inside > 0).astype(np.float64)
    counts, shares = np.bincount(level, inside), np.bincount(level, used)
    found: NDArray[np.float64] = (counts / np.maximum(shares, 1))[level] * used
    return found


def _within(bins: Bins, low: float, high: float, method: str) -> Range:
    return Range(min(max(low, bins.low), 0.0), max(min(high, bins.high), 0.0), method)
