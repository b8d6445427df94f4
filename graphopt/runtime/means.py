"""Mean and second moment of each channel of a tensor, summed in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphopt.runtime.accumulators import (
    Array,
    Doubles,
    channels,
    check_channels,
    check_finite,
    outer_blocks,
)


@dataclass(frozen=True)
class Mean:
    """Mean and second moment of each channel along ``axis``."""

    axis: int

    def start(self) -> Averages:
        """See :class:`Averages`."""
        return Averages(self.axis)


@dataclass
class Averages:
    """Sums of elements and of their squares per channel.

    Attributes:
        total: Σx, float64 [channels].
        squares: Σx², float64 [channels].
        count: elements seen per channel; 0 leaves the sums empty.
    """

    axis: int
    total: Doubles = field(default_factory=lambda: np.zeros(0))
    squares: Doubles = field(default_factory=lambda: np.zeros(0))
    count: int = 0

    def add(self, x: Array) -> None:
        """See :meth:`Accumulator.add`."""
        if not x.size:
            return
        by_channel = channels(x, self.axis)
        total, squares = np.zeros((2, by_channel.shape[1]))
        for part in outer_blocks(by_channel):
            exact = part.astype(np.float64)
            total += exact.sum(axis=(0, 2))
            squares += np.square(exact, out=exact).sum(axis=(0, 2))
        check_finite(squares, squares)
        if self.count:
            check_channels(total, self.total)
            total, squares = self.total + total, self.squares + squares
        self.total, self.squares = total, squares
        self.count += x.size // by_channel.shape[1]

    @property
    def mean(self) -> Doubles:
        """E(x) per channel."""
        return self.total / self.count

    @property
    def second_moment(self) -> Doubles:
        """E(x²) per channel."""
        return self.squares / self.count

    @property
    def nbytes(self) -> int:
        """Memory in bytes, as far as it is known before the first array."""
        return self.total.nbytes + self.squares.nbytes
