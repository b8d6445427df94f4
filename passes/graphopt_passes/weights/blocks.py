"""Weights as small integers, with a scale and a zero point for each block of numbers that are summed up.

    w ≈ (q − z)·s,    0 ≤ q, z < 2^bits

A weight is rows [channels, columns], of which each row is one output's: the columns are what is summed up,
and a block is some of them that follow each other. The last block of a row may be shorter. Symmetric blocks
have z = 2^(bits−1); the others reach from their least to their largest number. Both may be cut off where a
finer step for the other numbers gives less error (of what is summed up, with moments of the inputs where
it is known; a search over clips as of AWQ, Lin et al. 2023).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.quantize.scheme import LEAST_SCALE, Array

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

WHOLE = (1.0,)
FINE_CLIPS = tuple(np.round(np.arange(1.0, 0.49, -0.03), 2).tolist())
_PART = 1 << 18  # numbers that are worked on at once: they stay in the cache, and a huge weight in its file
_WORTH = 0.9  # part of the error that zero points must leave at most to be kept: they take memory, too


@dataclass(frozen=True)
class Grid:
    """The grids of the blocks of some rows.

    Attributes:
        scales: float32 [channels, blocks], positive.
        zeros: uint8 [channels, blocks].
        bits: 4 or 8.
        block: numbers of a block.
    """

    scales: Floats
    zeros: Bytes
    bits: int
    block: int

    @property
    def symmetric(self) -> bool:
        """Whether all zero points are the middle of the levels, which need not be stored."""
        return bool((self.zeros == middle(self.bits)).all())

    def of(self, channels: slice) -> Grid:
        """The grids of some rows."""
        return Grid(self.scales[channels], self.zeros[channels], self.bits, self.block)

    def nearest(self, w: Array) -> Bytes:
        """The integers of rows [channels, columns], rounded to nearest."""
        found = self._blocks(np.asarray(w, np.float32)) * (1 / self.scales)[..., None]
        np.rint(found, out=found)
        found += self.zeros[..., None]
        np.clip(found, 0, levels(self.bits), out=found)
        return self._rows(found.astype(np.uint8), w.shape[1])

    def real(self, integers: Bytes) -> Floats:
        """What integers [channels, columns] stand for."""
        steps = self._blocks(integers).astype(np.float32) - self.zeros[..., None].astype(np.float32)
        return self._rows(steps * self.scales[..., None], integers.shape[1])

    def expanded(self, columns: int) -> tuple[Array, Array]:
        """The scale and the zero point of each number, float64 [channels, columns]."""
        return tuple(  # type: ignore[return-value]
            np.repeat(found.astype(np.float64), self.block, axis=1)[:, :columns]
            for found in (self.scales, self.zeros)
        )

    def _blocks(self, rows: Array) -> Array:
        return blocked(rows, self.block)

    def _rows(self, blocks: Array, columns: int) -> Array:
        return blocks.reshape(len(blocks), -1)[:, :columns]


@dataclass(frozen=True)
class Inputs:
    """What is known of the x that columns of a weight are multiplied with, as if they were independent:

        E(Σ xⱼeⱼ)² ≈ Σ spreadⱼ·eⱼ² + (Σ meanⱼ·eⱼ)²

    Attributes:
        spread: the variance of each, [columns]; the unit does not matter.
        mean: of each, [columns], in the root of that unit; None if it is 0.
    """

    spread: Array
    mean: Array | None = None

    def blocked(self, block: int) -> Inputs:
        """The same as float32 [1, blocks, block], in a unit in which nothing is large."""
        size = max(np.sqrt(self.spread.max()), 0 if self.mean is None else np.abs(self.mean).max()) or 1.0

        def row(x: Array) -> Array:
            return blocked(np.asarray(x, np.float32).reshape(1, -1), block)

        return Inputs(row(self.spread / size**2), None if self.mean is None else row(self.mean / size))

    def repeated(self, elements: int, groups: int = 1) -> Inputs:
        """The same where each column is so many, which lie in groups, [groups, 1, columns]."""

        def row(x: Array) -> Array:
            return np.repeat(x, elements).reshape(groups, 1, -1)

        return Inputs(row(self.spread), None if self.mean is None else row(self.mean))

    def error(self, wrong: Array) -> Array:
        """E(Σ xⱼeⱼ)² of each row, from e, [..., columns]."""
        found = np.asarray((np.square(wrong) * self.spread).sum(axis=-1))
        return found if self.mean is None else found + np.square((wrong * self.mean).sum(axis=-1))


@dataclass(frozen=True)
class Blocked:
    """A weight on the grids of its blocks.

    Attributes:
        integers: uint8 [channels, columns].
        grid: what they stand for.
    """

    integers: Bytes
    grid: Grid

    def real(self) -> Floats:
        """The weight that it stands for, float32 [channels, columns]."""
        return self.grid.real(self.integers)


def levels(bits: int) -> int:
    """The largest integer."""
    return (1 << bits) - 1


def middle(bits: int) -> int:
    """The zero point of symmetric blocks."""
    return 1 << (bits - 1)


def blocked(rows: Array, block: int) -> Array:
    """Rows [channels, columns] as [channels, blocks, block]; what is missing of the last block is 0."""
    missing = -rows.shape[1] % block
    padded = np.pad(rows, ((0, 0), (0, missing))) if missing else rows
    return padded.reshape(len(rows), -1, block)


def parts(w: Array) -> Iterator[tuple[slice, Floats]]:
    """Some rows at a time, float32 and contiguous."""
    for part in _slices(w):
        yield part, _contiguous(w, part)


def _slices(w: Array) -> Iterator[slice]:
    step = max(_PART // max(w.shape[1], 1), 1)
    return (slice(start, min(start + step, len(w))) for start in range(0, len(w), step))


def _contiguous(w: Array, part: slice) -> Floats:
    return np.ascontiguousarray(w[part], np.float32)


def grid_of(  # noqa: PLR0913 - what a grid depends on
    w: Array,
    bits: int,
    block: int,
    *,
    symmetric: bool,
    inputs: Inputs | None = None,
    clips: tuple[float, ...] = WHOLE,
) -> Grid:
    """The grids with the least error among some clips of each block.

    Args:
        w: rows [channels, columns], floating point; read part by part.
        bits: 4 or 8.
        block: numbers of a block.
        symmetric: whether zero points are fixed in the middle.
        inputs: what columns are multiplied with; ``None`` if all count alike.
        clips: parts of a block's range to try; 1 comes first.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    grid = _empty(w, bits, block)
    known = None if inputs is None else inputs.blocked(block)

    def find(part: slice) -> None:
        blocks = blocked(_contiguous(w, part), block)
        grid.scales[part], grid.zeros[part] = _best(blocks, bits, symmetric, known, clips)

    _in_parallel(w, find)
    return grid


def _empty(w: Array, bits: int, block: int) -> Grid:
    shape = len(w), -(-w.shape[1] // block)
    return Grid(np.empty(shape, np.float32), np.empty(shape, np.uint8), bits, block)


def _in_parallel(w: Array, work: Callable[[slice], None]) -> None:
    """Do the work for all parts, on all cores: numpy computes without Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, _slices(w)):
            pass


def _best(
    blocks: Floats, bits: int, symmetric: bool, inputs: Inputs | None, clips: tuple[float, ...]
) -> tuple[Floats, Bytes]:
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the weight holds NaN or infinity")
    ends = _symmetric_ends(low, high, bits) if symmetric else (np.minimum(low, 0), np.maximum(high, 0))
    low, high = ends
    scales, zeros = _steps(low, high, bits)
    if len(clips) == 1:
        return scales, zeros.astype(np.uint8)
    least = _error(blocks, scales, zeros, bits, inputs)
    for clip in clips[1:]:
        tried = _steps(low * np.float32(clip), high * np.float32(clip), bits)
        error = _error(blocks, *tried, bits, inputs)
        wins = error < least
        least = np.where(wins, error, least)
        scales, zeros = np.where(wins, tried[0], scales), np.where(wins, tried[1], zeros)
    return scales, zeros.astype(np.uint8)


def _symmetric_ends(low: Floats, high: Floats, bits: int) -> tuple[Floats, Floats]:
    """A range whose zero point is the middle of the levels, one more of which lie below than above."""
    step = np.maximum(np.maximum(-low, 0) / middle(bits), np.maximum(high, 0) / (middle(bits) - 1))
    return -step * middle(bits), step * (middle(bits) - 1)


def _steps(low: Floats, high: Floats, bits: int) -> tuple[Floats, Floats]:
    scales = (high - low) / np.float32(levels(bits))
    scales = np.where(scales > LEAST_SCALE, scales, np.float32(1.0)).astype(np.float32)
    return scales, np.clip(np.rint(-low / scales), 0, levels(bits)).astype(np.float32)


def _error(blocks: Floats, scales: Floats, zeros: Floats, bits: int, inputs: Inputs | None) -> Floats:
    """The error of each block."""
    wrong = blocks * (1 / scales)[..., None]
    np.rint(wrong, out=wrong)
    np.clip(wrong, -zeros[..., None], levels(bits) - zeros[..., None], out=wrong)
    wrong *= scales[..., None]
    wrong -= blocks
    found = np.square(wrong, out=wrong).sum(axis=2) if inputs is None else inputs.error(wrong)
    return np.asarray(found, np.float32)


def prefers_zeros(w: Array, bits: int, block: int) -> bool:
    """Whether zero points of their own lower the error of a weight by a tenth, told by its first rows."""
    _, rows = next(iter(parts(w)))
    errors = []
    for symmetric in (True, False):
        grid = grid_of(rows, bits, block, symmetric=symmetric, clips=WHOLE)
        errors.append(float(np.square(grid.real(grid.nearest(rows)) - rows).sum(dtype=np.float64)))
    return errors[1] < _WORTH * errors[0]


def nearest(  # noqa: PLR0913 - what a grid depends on
    w: Array,
    bits: int,
    block: int,
    clips: tuple[float, ...] = WHOLE,
    *,
    symmetric: bool | None = None,
    inputs: Inputs | None = None,
) -> Blocked:
    """The weight rounded to nearest on the best grids.

    Args:
        w: rows [channels, columns], floating point; read part by part.
        bits: 4 or 8.
        block: numbers of a block.
        clips: parts of a block's range to try; 1 comes first.
        symmetric: whether zero points are fixed in the middle; ``None`` decides by the error.
        inputs: what columns are multiplied with; ``None`` if all count alike.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    if symmetric is None:
        symmetric = not prefers_zeros(w, bits, block)
    known = None if inputs is None else inputs.blocked(block)
    grid, integers = _empty(w, bits, block), np.empty(w.shape, np.uint8)

    def round_part(part: slice) -> None:
        rows = _contiguous(w, part)
        grid.scales[part], grid.zeros[part] = _best(blocked(rows, block), bits, symmetric, known, clips)
        integers[part] = grid.of(part).nearest(rows)

    _in_parallel(w, round_part)
    return Blocked(integers, grid)


def on_grid(w: Array, grid: Grid) -> Blocked:
    """The weight rounded to nearest on given grids."""
    integers = np.empty(w.shape, np.uint8)

    def round_part(part: slice) -> None:
        integers[part] = grid.of(part).nearest(_contiguous(w, part))

    _in_parallel(w, round_part)
    return Blocked(integers, grid)
