"""Statistics of a tensor, gathered from one array after another in a fixed amount of memory.

A *kind* says what to gather: it is frozen, can be a key, and travels to the worker. ``kind.start()`` gives
its *accumulator*, which is fed there and comes back as the result. The same arrays in the same order give the
same bits; extents and histograms do not even depend on the order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Doubles: TypeAlias = NDArray[np.float64]

_BLOCK = 1 << 16  # elements that are worked on at once: they stay in the cache
_LEAST_WIDTH = 2.0**-120  # of a bin; its inverse is a float32


class Accumulator(Protocol):
    """Takes arrays, keeps statistics."""

    count: int

    @property
    def add(self) -> Callable[..., None]:
        """Take one array of real numbers, or one of each of the values that are gathered together.

        An empty one changes nothing.

        Raises:
            ValueError: it holds NaN or infinity, or its channels are not those of the arrays before.
        """

    @property
    def nbytes(self) -> int:
        """Memory that it needs, in bytes."""


class Kind(Protocol):
    """What to gather of a tensor; hashable."""

    def start(self) -> Accumulator:
        """A new accumulator of this kind."""


@dataclass(frozen=True)
class Extent:
    """The least and the largest element: of the tensor, or of each channel along ``axis``."""

    axis: int | None = None

    def start(self) -> Extremes:
        """See :class:`Extremes`."""
        return Extremes(self.axis)


@dataclass
class Extremes:
    """The least and the largest element.

    Attributes:
        low: float64 [channels], or [1] without an axis.
        high: as ``low``.
        count: elements seen; 0 leaves ``low`` and ``high`` empty.
    """

    axis: int | None = None
    low: Doubles = field(default_factory=lambda: np.zeros(0))
    high: Doubles = field(default_factory=lambda: np.zeros(0))
    count: int = 0

    def add(self, x: Array) -> None:
        """See :meth:`Accumulator.add`."""
        if not x.size:
            return
        low, high = self._of(x)
        check_finite(low, high)
        if self.count:
            check_channels(low, self.low)
            low, high = np.minimum(low, self.low), np.maximum(high, self.high)
        self.low, self.high, self.count = low, high, self.count + x.size

    def _of(self, x: Array) -> tuple[Doubles, Doubles]:
        if self.axis is None:
            low, high = bounds(x)
            return np.array([low]), np.array([high])
        by_channel = channels(x, self.axis)
        return by_channel.min(axis=(0, 2)).astype(np.float64), by_channel.max(axis=(0, 2)).astype(np.float64)

    @property
    def nbytes(self) -> int:
        """Memory in bytes, as far as it is known before the first array."""
        return self.low.nbytes + self.high.nbytes


@dataclass(frozen=True)
class Histogram:
    """How often which numbers occur, in at most ``bins`` bins, of which at least about half are in use."""

    bins: int = 4096

    def start(self) -> Bins:
        """See :class:`Bins`."""
        return Bins(np.zeros(self.bins, np.int64))


@dataclass
class Bins:
    """Counts of numbers in bins whose edges are multiples of a power of two.

    Bin ``i`` counts the numbers from ``(first + i)·width`` up to, not including, ``(first + i + 1)·width``.
    The bins cover zero and all numbers seen; when larger ones come, neighbours merge and the width doubles.
    As edges stay on one lattice, merging is exact: the result is that of a histogram that knew the range from
    the start. Zeros are counted apart, since a rectified tensor is full of them, and no bin's centre is 0.

    Attributes:
        counts: int64 [bins], zeros excluded.
        width: of a bin, 0 as long as nothing but zeros was seen.
        first: index of the first bin on the lattice, ≤ 0.
        zeros: how many elements are 0.
        low, high: the least and largest element (0 is among them).
        count: elements seen, zeros included.
    """

    counts: NDArray[np.int64]
    width: float = 0.0
    first: int = 0
    zeros: int = 0
    low: float = 0.0
    high: float = 0.0
    count: int = 0

    def add(self, x: Array) -> None:
        """See :meth:`Accumulator.add`."""
        if not x.size:
            return
        low, high = bounds(x)
        check_finite(low, high)
        self._reach(min(low, self.low), max(high, self.high))
        self.count += x.size
        if not self.width:
            self.zeros += x.size
            return
        for part in _blocks(x):
            self._count(part)

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.counts.nbytes

    @property
    def edges(self) -> Doubles:
        """Edges of the bins, float64 [bins + 1]."""
        return np.arange(self.first, self.first + self.counts.size + 1) * np.float64(self.width)

    @property
    def centres(self) -> Doubles:
        """Centres of the bins, float64 [bins]."""
        found: Doubles = (self.edges[:-1] + self.edges[1:]) / 2
        return found

    def _count(self, part: NDArray[np.float32]) -> None:
        # The product with a power of two is exact, so no number lands beside its bin.
        scaled = part * np.float32(1 / self.width)
        index = np.floor(scaled, out=scaled).astype(np.int32)
        index -= np.int32(self.first)
        np.clip(index, 0, self.counts.size - 1, out=index)  # denormal products may be rounded
        zeros = part.size - int(np.count_nonzero(part))
        self.counts += np.bincount(index, minlength=self.counts.size)
        self.counts[-self.first] -= zeros
        self.zeros += zeros

    def _reach(self, low: float, high: float) -> None:
        """Make the bins cover all from ``low`` ≤ 0 to ``high`` ≥ 0."""
        self.low, self.high = low, high
        if low == high:
            return
        bins = self.counts.size
        width = max(self.width, _LEAST_WIDTH, 2.0 ** (math.frexp((high - low) / bins)[1] - 1))
        while math.floor(high / width) - math.floor(low / width) >= bins:
            width *= 2
        self._move(math.floor(low / width), width)

    def _move(self, first: int, width: float) -> None:
        if (first, width) == (self.first, self.width):
            return
        ratio = self.width / width  # a power of two, so that products are exact
        used = np.flatnonzero(self.counts)
        counts = np.zeros_like(self.counts)
        place = np.floor((self.first + used) * ratio).astype(np.int64) - first
        np.add.at(counts, place, self.counts[used])
        self.counts, self.first, self.width = counts, first, width


def bounds(x: Array) -> tuple[float, float]:
    """The least and the largest element, read once; NaN if there is one."""
    flat = x.reshape(-1)
    low, high = [], []
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        low.append(part.min())
        high.append(part.max())
    return float(np.min(low)), float(np.max(high))


def channels(x: Array, axis: int) -> Array:
    """A view [before, channels, behind] of an array, its ``axis`` in the middle.

    Raises:
        ValueError: there is no such axis.
    """
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"a tensor of rank {x.ndim} has no axis {axis}")
    axis %= x.ndim
    return x.reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))


def outer_blocks(by_channel: Array) -> Iterator[Array]:
    """Parts of an array [before, channels, behind] along its outer axes, of about one block each."""
    before, count, behind = by_channel.shape
    inner = max(_BLOCK // count, 1)
    step = max(inner // behind, 1)
    for start in range(0, before, step):
        for column in range(0, behind, inner):
            yield by_channel[start : start + step, :, column : column + inner]


def check_finite(low: float | Doubles, high: float | Doubles) -> None:
    """Refuse NaN and infinity, which bounds and sums of an array inherit from any of its elements.

    Raises:
        ValueError: one of them is not finite.
    """
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the tensor holds NaN or infinity")


def check_channels(now: Doubles, before: Doubles) -> None:
    """Refuse a number of channels that changes from array to array.

    Raises:
        ValueError: it changed.
    """
    if now.shape[-1] != before.shape[-1]:
        raise ValueError(f"the axis has {now.shape[-1]} channels, but had {before.shape[-1]} before")


def _blocks(x: Array) -> Iterator[NDArray[np.float32]]:
    flat = x.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield np.asarray(flat[start : start + _BLOCK], np.float32)
