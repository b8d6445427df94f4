"""The few values that stand for all numbers of a weight, so that the squared error is least.

    min Σₖ eₖ·(wₖ − c(wₖ))²

over the values c, eₖ being the energy E(x²) of what number k is multiplied with; without samples all are
equal. Lloyd's iteration in one dimension: each number goes to the nearest value, each value to the mean of
its numbers. Numbers are counted in 2¹⁶ bins first, so that a weight of any size takes one pass and no copy.
Zeros stay zeros if a weight has many, since they were put there (Han et al. 2016 do the same behind pruning).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from graphopt.runtime.accumulators import Array, Doubles

BINS = 1 << 16
_ROUNDS = 100
_MANY_ZEROS = 0.05  # of the numbers of a weight


@dataclass(frozen=True)
class Codebook:
    """Values, ascending.

    Attributes:
        values: float32 [2⁴ or 2⁸, at most].
    """

    values: Array

    def indices(self, numbers: Array) -> Array:
        """The nearest value of each number, uint8 of the same shape."""
        middles = (self.values[1:] + self.values[:-1]) / 2
        return np.searchsorted(middles, numbers).astype(np.uint8)

    @classmethod
    def of(cls, histogram: Histogram, size: int) -> Codebook:
        """The values of least error, by Lloyd's iteration from evenly filled bins.

        Args:
            histogram: of the numbers.
            size: how many values.
        """
        filled = histogram.energy > 0
        energy, moment = histogram.energy[filled], histogram.moment[filled]
        centres = moment / energy
        values = _start(centres, energy, size)
        zero = histogram.zeros > _MANY_ZEROS
        sums = np.concatenate([[0.0], np.cumsum(energy)]), np.concatenate([[0.0], np.cumsum(moment)])
        for _ in range(_ROUNDS):
            if zero:
                values[np.abs(values).argmin()] = 0.0
            moved = _means(values, centres, *sums)
            if np.allclose(moved, values, rtol=0, atol=1e-7 * np.ptp(centres)):
                break
            values = moved
        if zero:
            values[np.abs(values).argmin()] = 0.0
        return cls(np.unique(values.astype(np.float32)))


@dataclass(frozen=True)
class Histogram:
    """The numbers of a weight in bins.

    Attributes:
        energy: Σ e of each bin, float64 [bins].
        moment: Σ e·w, likewise.
        zeros: the share of numbers that are 0.
    """

    energy: Doubles
    moment: Doubles
    zeros: float

    @classmethod
    def of(cls, parts: Iterable[tuple[Array, Array]], low: float, high: float) -> Histogram:
        """Count numbers.

        Args:
            parts: numbers, and their energies, which broadcast to them.
            low, high: the least and the largest number.
        """
        energy, moment, zeros, count = np.zeros(BINS), np.zeros(BINS), 0, 0
        step = (high - low) / BINS or 1.0
        for numbers, energies in parts:
            flat = numbers.reshape(-1).astype(np.float64)
            weights = np.broadcast_to(energies, numbers.shape).reshape(-1)
            place = np.minimum((flat - low) / step, BINS - 1).astype(np.int64)
            energy += np.bincount(place, weights, BINS)
            moment += np.bincount(place, weights * flat, BINS)
            zeros, count = zeros + int((flat == 0).sum()), count + flat.size
        return cls(energy, moment, zeros / max(count, 1))


def _start(centres: Doubles, energy: Doubles, size: int) -> Doubles:
    """Values between those that fill bins evenly and those that lie evenly: rare large numbers count, too."""
    if len(centres) <= size:
        return centres.copy()
    shares = np.cumsum(energy) / energy.sum()
    filled = np.interp((np.arange(size) + 0.5) / size, shares, centres)
    return (filled + np.linspace(centres[0], centres[-1], size)) / 2


def _means(values: Doubles, centres: Doubles, energy: Doubles, moment: Doubles) -> Doubles:
    """The mean of the numbers nearest to each value; a value without numbers stays.

    Args:
        values: ascending.
        centres: of the bins, ascending.
        energy, moment: sums over all bins before each, and over all.
    """
    edges = np.searchsorted(centres, (values[1:] + values[:-1]) / 2)
    bounds = np.concatenate([[0], edges, [len(centres)]])
    total, first = np.diff(energy[bounds]), np.diff(moment[bounds])
    return np.where(total > 0, first / np.where(total > 0, total, 1.0), values)
