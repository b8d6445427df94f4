"""Sums over pairs of rows: what one layer reads, and what another layer gives at the same place.

A layer of a changed model, the student, is to give from its own inputs x what the original's, the teacher,
gives: y. Everything that least squares asks of the samples are sums of products, H = Σ xxᵀ, T = Σ xyᵀ, Σx,
Σy, Σy² and the number of rows; so no activation is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from graphopt.runtime.accumulators import Array, Doubles, channels, check_finite
from graphopt.runtime.moments import Moments, product, squared

_AT_ONCE = 1024  # rows


@dataclass
class Sums:
    """Sums over pairs of rows x, y, for each group of a Conv (a product has one).

    Attributes:
        xx: H = Σ xxᵀ, float64 [groups, columns, columns].
        xy: T = Σ xyᵀ, float64 [groups, columns, channels/groups].
        x: Σ x, float64 [groups, columns].
        y: Σ y, float64 [groups, channels/groups].
        yy: Σ y², as ``y``.
        count: rows.
    """

    xx: Doubles
    xy: Doubles
    x: Doubles
    y: Doubles
    yy: Doubles
    count: int = 0

    @classmethod
    def zeros(cls, groups: int, columns: int, channels: int) -> Sums:
        """Those over no rows."""
        x, y = np.zeros((groups, columns)), np.zeros((groups, channels))
        return cls(
            np.zeros((groups, columns, columns)), np.zeros((groups, columns, channels)), x, y, y.copy()
        )

    def __add__(self, other: Sums) -> Sums:
        """Over the rows of both."""
        return Sums(*(getattr(self, name) + getattr(other, name) for name in vars(self)))

    def take(self, x: Array, y: Array) -> None:
        """Add rows [groups, n, columns] and [groups, n, channels/groups]."""
        self.xx += squared(x)
        self.xy += product(x, y)
        self.x += x.sum(axis=1, dtype=np.float64)
        self.y += y.sum(axis=1, dtype=np.float64)
        self.yy += np.square(y, dtype=np.float64).sum(axis=1)
        self.count += x.shape[1]

    def moved(self, x: Doubles, y: Doubles) -> None:
        """Make sums of rows from which x and y had been taken those of the rows, in place.

        Args:
            x, y: [groups, columns] and [groups, channels/groups].
        """
        whole = self.x + self.count * x  # Σ (d + x)(d + x)ᵀ = Σ ddᵀ + x·(Σ d)ᵀ + (Σ d + n·x)·xᵀ
        for start in range(0, x.shape[1], _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            for products, right, center in ((self.xx, self.x, x), (self.xy, self.y, y)):
                products[:, part] += x[:, part, None] * right[:, None]
                products[:, part] += whole[:, part, None] * center[:, None]
        self.yy += y * (2 * self.y + self.count * y)
        self.x, self.y = whole, self.y + self.count * y


class Shares(Protocol):
    """Sums over two shares of the samples."""

    @property
    def fit(self) -> Sums:
        """Over those that are fitted to."""

    @property
    def held(self) -> Sums:
        """Over those that judge."""


class Pairing(Protocol):
    """How two arrays are read as pairs of rows, of which sums are taken."""

    @property
    def groups(self) -> int:
        """Of rows: those of a Conv, or the directions of a recurrent layer."""

    @property
    def columns(self) -> int:
        """Length of the rows that are read."""

    @property
    def channels(self) -> int:
        """Length of the rows that are given, all groups together."""

    @property
    def held_every(self) -> int:
        """Every so many-th array only judges what is fitted to the others; 0: none does."""

    def read(self, x: Array, y: Array, turn: int) -> tuple[Array, Array]:
        """Rows [groups, n, columns] and [groups, n, channels/groups]; see :meth:`Reading.read`."""


@dataclass(frozen=True)
class Reading:
    """How rows that a layer reads are paired with what is given at the same positions.

    Attributes:
        moments: how the layer reads rows.
        channels: of the output, all groups together.
        axis: of the output that holds them.
        held_every: every so many-th array only judges what is fitted to the others; 0: none does.
    """

    moments: Moments
    channels: int
    axis: int
    held_every: int = 0

    @property
    def groups(self) -> int:
        """See :class:`Pairing`."""
        return self.moments.groups

    @property
    def columns(self) -> int:
        """See :class:`Pairing`."""
        return self.moments.columns

    def read(self, x: Array, y: Array, turn: int) -> tuple[Array, Array]:
        """Rows [groups, n, columns] and [groups, n, channels/groups] of the same positions.

        Args:
            x, y: what a layer reads, and what is to come out.
            turn: the number of the pair, on which the choice of positions depends.

        Raises:
            ValueError: one of them holds NaN or infinity, or they do not fit the layer.
        """
        rows, picked = self.moments.read(x, turn)
        results = self._results(y, picked)
        for part in (rows, results):
            total = part.sum(axis=1, dtype=np.float64)
            check_finite(total, total)
        return rows, results

    def _results(self, y: Array, picked: Array) -> Array:
        by_channel = channels(y, self.axis)
        if by_channel.shape[1] != self.channels:
            raise ValueError(f"the output has {by_channel.shape[1]} channels, not {self.channels}")
        outer, inner = np.divmod(picked, by_channel.shape[2])
        rows: Array = by_channel[outer, :, inner]
        return rows.reshape(len(rows), self.moments.groups, -1).transpose(1, 0, 2)


@dataclass(frozen=True)
class Paired(Reading):
    """Sums over the pairs."""

    def start(self) -> Pairs:
        """See :class:`Pairs`."""
        return Pairs(self)


def _share(kind: Pairing, turn: int) -> int:
    """Where the pair of this number goes: 0 to what is fitted to, 1 to what judges."""
    every = kind.held_every
    return 1 if every and turn % every == every - 1 else 0


@dataclass
class Pairs:
    """Sums over two shares of the arrays.

    Attributes:
        kind: what was asked for.
        count: rows used.
        arrays: pairs of arrays seen.
        fit, held: sums over those that are fitted to, and those that judge.
    """

    kind: Pairing
    count: int = 0
    arrays: int = 0
    _sums: list[Sums] = field(default_factory=list)
    _center: tuple[Array, Array] | None = None
    _waiting: list[list[tuple[Array, Array]]] = field(default_factory=lambda: [[], []])

    def add(self, x: Array, y: Array) -> None:
        """Take what a layer reads, and what is to come out.

        Raises:
            ValueError: one of them holds NaN or infinity, or they do not fit the layer.
        """
        if not x.size:
            return
        rows, results = self.kind.read(x, y, self.arrays)
        share = _share(self.kind, self.arrays)
        self.arrays += 1
        self.count += rows.shape[1]
        self._waiting[share].append((rows, results))
        if sum(one.shape[1] for one, _ in self._waiting[share]) >= _AT_ONCE:
            self._take(share)

    @property
    def fit(self) -> Sums:
        """Over the arrays that are fitted to."""
        return self._all()[0]

    @property
    def held(self) -> Sums:
        """Over the arrays that judge; those that are fitted to if there are none."""
        fit, held = self._all()
        return held if held.count else fit

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        kind = self.kind
        numbers = kind.columns * (kind.columns * kind.groups + kind.channels)
        return 8 * numbers * (2 if kind.held_every else 1)

    def _all(self) -> list[Sums]:
        for share in range(2):
            self._take(share)
        if self._center is not None:
            x, y = (np.asarray(part[:, 0], np.float64) for part in self._center)
            for sums in self._sums:
                if sums.count:
                    sums.moved(x, y)
            self._center = None
        return self._sums

    def _take(self, share: int) -> None:
        """Multiply the rows that wait for it: many at once, since adding up takes time too.

        Products are float32. So the first rows' mean is taken from all of them, else what varies little about
        a large mean would be lost.
        """
        if waiting := self._waiting[share]:
            x, y = (np.concatenate(rows, axis=1) for rows in zip(*waiting, strict=True))
            if not self._sums:
                self._center = _mean(x), _mean(y)
            if self._center is not None:
                x, y = x - self._center[0], y - self._center[1]
        if not self._sums:
            self._sums = list(self._empty())
        if waiting:
            self._sums[share].take(x, y)
            self._waiting[share] = []

    def _empty(self) -> Iterator[Sums]:
        kind = self.kind
        for share in range(2):
            columns = kind.columns if share == 0 or kind.held_every else 0
            yield Sums.zeros(kind.groups, columns, kind.channels // kind.groups)

    def __getstate__(self) -> dict[str, Any]:
        self._all()
        return self.__dict__


def _mean(rows: Array) -> Array:
    """Over the rows, float32 [groups, 1, …]."""
    found: Array = rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    return found


@dataclass(frozen=True)
class PairedRows(Reading):
    """The pairs themselves, the first so many: for layers whose H is larger than all rows together."""

    most: int = 2048

    def start(self) -> RowPairs:
        """See :class:`RowPairs`."""
        return RowPairs(self)

    @property
    def nbytes(self) -> int:
        """Bytes of its rows."""
        return 4 * self.most * (self.moments.columns + self.channels)


@dataclass
class RowPairs:
    """The first rows of both shares.

    Attributes:
        kind: what was asked for.
        count: rows kept.
        arrays: pairs of arrays seen.
        rows: (x, y) of those that are fitted to, and of those that judge, float32 [n, columns] and
            [n, channels].
    """

    kind: PairedRows
    count: int = 0
    arrays: int = 0
    rows: list[list[tuple[Array, Array]]] = field(default_factory=lambda: [[], []])

    def add(self, x: Array, y: Array) -> None:
        """As :meth:`Pairs.add`; what exceeds ``most`` rows is not kept."""
        if not x.size:
            return
        pair = self.kind.read(x, y, self.arrays)
        share = _share(self.kind, self.arrays)
        self.arrays += 1
        room = self.kind.most - self.count
        kept = [np.asarray(part[0, :room], np.float32) for part in pair]
        self.count += len(kept[0])
        self.rows[share].append((kept[0], kept[1]))

    def of(self, share: int) -> tuple[Array, Array]:
        """All rows of one share: 0 is fitted to, 1 judges."""
        empty = [np.zeros((0, size), np.float32) for size in (self.kind.moments.columns, self.kind.channels)]
        x, y = zip(empty, *self.rows[share], strict=True)
        return np.concatenate(x), np.concatenate(y)

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.kind.nbytes
