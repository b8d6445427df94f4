"""Second moments XᵀX of the rows that a layer multiplies its weight with; what GPTQ-style rounding needs.

A Conv is seen as a product: each output position multiplies one row, the patch under the kernel (im2col), and
each group of channels has rows of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from graphopt.runtime.accumulators import Array, Doubles, channels, check_finite

_ROWS_PER_COLUMN = 2
_AT_ONCE = 1024  # rows


@dataclass(frozen=True)
class Patches:
    """How a Conv reads its input [batch, channels, *spatial].

    Attributes:
        kernel: size per spatial axis; strides and dilations likewise.
        pads: in ONNX's order: all begins, then all ends; or ``SAME_UPPER``, ``SAME_LOWER``.
        groups: of channels.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | str
    groups: int = 1

    def windows(self, x: Array) -> Array:
        """A view [batch, channels, *output positions, *kernel] of the padded input."""
        begins, ends = self._padding(x.shape[2:])
        padded = np.pad(x, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
        reach = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        spatial = tuple(range(2, x.ndim))
        view = sliding_window_view(padded, reach, axis=spatial)
        steps: list[slice] = [slice(None, None, step) for step in (*self.strides, *self.dilations)]
        return view[(slice(None), slice(None), *steps)]

    def _padding(self, sizes: tuple[int, ...]) -> tuple[list[int], list[int]]:
        rank = len(self.kernel)
        if not isinstance(self.pads, str):
            return list(self.pads[:rank]), list(self.pads[rank:])
        begins, ends = [], []
        for size, kernel, step, dilation in zip(
            sizes, self.kernel, self.strides, self.dilations, strict=True
        ):
            total = max((-(-size // step) - 1) * step + (kernel - 1) * dilation + 1 - size, 0)
            small = total // 2
            begins.append(small if self.pads == "SAME_UPPER" else total - small)
            ends.append(total - begins[-1])
        return begins, ends


@dataclass(frozen=True)
class Moments:
    """XᵀX, Σx and the number of rows of a layer's input.

    Attributes:
        columns: length of a row: K of a MatMul or Gemm, C/groups·∏kernel of a Conv.
        axis: the axis of the input that is summed over in a MatMul (-1) or Gemm (0 with transA).
        patches: how a Conv reads its input; then ``axis`` means nothing.
        rows: at most this many rows of one array are used, picked at random, the same in every run; 0 is the
            larger of 512 and twice the number of columns.
        seed: of the choice of rows.
    """

    columns: int
    axis: int = -1
    patches: Patches | None = None
    rows: int = 0
    seed: int = 0

    def start(self) -> Gram:
        """See :class:`Gram`."""
        return Gram(self, np.zeros((self.groups, self.columns)))

    @property
    def groups(self) -> int:
        """Of channels, each with rows of its own."""
        return self.patches.groups if self.patches else 1

    def read(self, x: Array, turn: int) -> tuple[Array, NDArray[np.int64]]:
        """Rows of one array, and which of them all, counted over batch and positions.

        Args:
            x: what the layer reads.
            turn: the number of the array, on which the choice of rows depends.

        Returns:
            Rows [groups, n, columns] and their numbers [n], ascending.

        Raises:
            ValueError: rows of this array are of another length.
        """
        rows, picked = self._patches(x, self.patches, turn) if self.patches else self._rows(x, turn)
        if rows.shape[2] != self.columns:
            raise ValueError(f"the layer reads rows of {rows.shape[2]}, not of {self.columns} numbers")
        return rows, picked

    def _rows(self, x: Array, turn: int) -> tuple[Array, NDArray[np.int64]]:
        """Rows [1, n, columns] of a product."""
        by_column = channels(x, self.axis)
        before, _, behind = by_column.shape
        picked = self._pick(before * behind, turn)
        outer, inner = np.divmod(picked, behind)
        return by_column[outer, :, inner][None], picked

    def _patches(self, x: Array, patches: Patches, turn: int) -> tuple[Array, NDArray[np.int64]]:
        """Rows [groups, n, columns] of a Conv."""
        view = patches.windows(x)
        rank = len(patches.kernel)
        batch, *positions = (view.shape[0], *view.shape[2 : 2 + rank])
        picked = self._pick(batch * int(np.prod(positions)), turn)
        index = np.unravel_index(picked, (batch, *positions))
        where: Any = (index[0], slice(None), *index[1:])
        found: Array = view[where]  # [n, channels, *kernel]
        return found.reshape(len(found), patches.groups, -1).transpose(1, 0, 2), picked

    def _pick(self, rows: int, turn: int) -> NDArray[np.int64]:
        limit = self.rows or max(512, _ROWS_PER_COLUMN * self.columns)
        if rows <= limit:
            return np.arange(rows)
        rng: Any = np.random.default_rng([self.seed, turn])
        picked: NDArray[np.int64] = np.sort(rng.choice(rows, limit, replace=False, shuffle=False))
        return picked


@dataclass
class Gram:
    """Sums over rows x, for each group of a Conv (a product has one).

    Attributes:
        kind: what was asked for.
        total: Σ x, float64 [groups, columns].
        count: rows used.
        arrays: arrays seen.
    """

    kind: Moments
    total: Doubles
    count: int = 0
    arrays: int = 0
    _squares: Doubles = field(default_factory=lambda: np.zeros(0))
    _waiting: list[Array] = field(default_factory=list)

    def add(self, x: Array) -> None:
        """See :meth:`graphopt.runtime.accumulators.Accumulator.add`."""
        if not x.size:
            return
        rows, _ = self.kind.read(x, self.arrays)
        self.arrays += 1
        total = rows.sum(axis=1, dtype=np.float64)
        check_finite(total, total)
        self.total += total
        self.count += rows.shape[1]
        self._waiting.append(rows)
        if sum(one.shape[1] for one in self._waiting) >= _AT_ONCE:
            self._square()

    @property
    def products(self) -> Doubles:
        """Σ xxᵀ, float64 [groups, columns, columns]."""
        self._square()
        return self._squares

    def _square(self) -> None:
        """Multiply the rows that wait for it: many at once, since adding up takes time too."""
        if not self._squares.size:
            groups, columns = self.total.shape
            self._squares = np.zeros((groups, columns, columns))
        if self._waiting:
            self._squares += squared(np.concatenate(self._waiting, axis=1))
            self._waiting = []

    def __getstate__(self) -> dict[str, Any]:
        self._square()
        return self.__dict__

    @property
    def energy(self) -> Doubles:
        """E(x²) of each column, float64 [groups, columns]."""
        found: Doubles = np.diagonal(self.products, axis1=1, axis2=2) / max(self.count, 1)
        return found

    @property
    def mean(self) -> Doubles:
        """E(x) of each column, float64 [groups, columns]."""
        return self.total / max(self.count, 1)

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.total.nbytes * (self.kind.columns + 1)


def squared(rows: Array) -> Array:
    """XᵀX of rows [groups, n, columns], see :func:`product`."""
    return product(rows, rows)


def product(x: Array, y: Array) -> Array:
    """XᵀY of rows [groups, n, …], in float32: twice as fast, and exact enough to be summed in float64.

    Doubles, and numbers whose products overflow, are multiplied in float64.
    """
    left, right = (rows.astype(np.result_type(rows, np.float32), copy=False) for rows in (x, y))
    with np.errstate(over="ignore", invalid="ignore"):
        found: Array = left.swapaxes(1, 2) @ right
        largest = np.abs(found).max(initial=0.0)
    if np.float64 in (left.dtype, right.dtype) or np.isfinite(largest):
        return found
    return product(x.astype(np.float64), y.astype(np.float64))
