"""How much a tensor would lose on each of several integer grids, per channel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.accumulators import Array, Doubles, channels, check_channels, check_finite

_LIMIT = 1 << 17  # elements of one array that are looked at


@dataclass(frozen=True)
class Steps:
    """An affine grid: the numbers (q − zero_point)·scale for the integers q from ``least`` to ``most``."""

    scale: float
    zero_point: int
    least: int
    most: int

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The nearest numbers on the grid, half to even (ONNX QuantizeLinear)."""
        q: NDArray[np.float32] = np.rint(x / np.float32(self.scale))
        q += np.float32(self.zero_point)
        np.clip(q, self.least, self.most, out=q)
        q -= np.float32(self.zero_point)
        q *= np.float32(self.scale)
        return q


@dataclass(frozen=True)
class GridErrors:
    """The error energy on each grid, for each channel along ``axis`` (``None``: for the whole tensor).

    Of an array with more than 131,072 elements a random part is looked at, the same in every run.
    """

    grids: tuple[Steps, ...]
    axis: int | None = None
    seed: int = 0

    def start(self) -> Losses:
        """See :class:`Losses`."""
        return Losses(self.grids, self.axis, self.seed)


@dataclass
class Losses:
    """Error energies.

    Attributes:
        errors: Σ(Q(x) − x)², float64 [grids, channels] (one channel without an axis).
        energy: Σx², float64 [channels].
        count: elements looked at per channel; 0 leaves the sums empty.
    """

    grids: tuple[Steps, ...]
    axis: int | None
    seed: int = 0
    errors: Doubles = field(default_factory=lambda: np.zeros((0, 0)))
    energy: Doubles = field(default_factory=lambda: np.zeros(0))
    count: int = 0
    arrays: int = 0

    def add(self, x: Array) -> None:
        """See :meth:`graphopt.runtime.accumulators.Accumulator.add`."""
        if not x.size:
            return
        rows = self._rows(x)
        self.arrays += 1
        energy = _energy(rows)
        check_finite(energy, energy)
        errors = np.stack([_energy(grid.round(rows) - rows) for grid in self.grids])
        if self.count:
            check_channels(energy, self.energy)
            errors, energy = self.errors + errors, self.energy + energy
        self.errors, self.energy, self.count = errors, energy, self.count + len(rows)

    def _rows(self, x: Array) -> NDArray[np.float32]:
        """The elements as [positions, channels], or a random part of the positions."""
        by_channel = x.reshape(-1, 1, 1) if self.axis is None else channels(x, self.axis)
        before, count, behind = by_channel.shape
        limit = max(_LIMIT // count, 1)
        if before * behind <= limit:
            picked = np.arange(before * behind)
        else:
            rng = np.random.default_rng([self.seed, self.arrays])
            picked = np.sort(rng.integers(0, before * behind, limit))
        outer, inner = np.divmod(picked, behind)
        return np.asarray(by_channel[outer, :, inner], np.float32)

    @property
    def nbytes(self) -> int:
        """Memory in bytes, as far as it is known before the first array."""
        return self.errors.nbytes + self.energy.nbytes


def _energy(rows: NDArray[Any]) -> Doubles:
    """Σx² of each column, summed in float64."""
    found: Doubles = np.square(rows, dtype=np.float64).sum(axis=0)
    return found
