"""Layers that read channels of a group, as what a choice of channels needs to know of them.

A layer sums over columns; each unit of a group stands for some of them: the kernel positions of a channel,
the pixels of one behind Flatten. A Conv with groups of channels counts as several readers.

A layer may make the group that it reads, such as a recurrent layer, or the last one of a residual block. Then
a unit has rows of it, too, which go with the unit: what they read of it is no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from graphopt.runtime.accumulators import Array, Doubles
from graphopt.runtime.pairs import RowPairs, Shares
from graphopt_passes.axes import Group
from graphopt_passes.refit.linear import in_parts
from graphopt_passes.refit.recurrent import Layer
from graphopt_passes.refit.solve import variation

_AT_ONCE = 256  # rows of a weight
DAMP = 1e-2  # part of the mean of H's diagonal: samples do not show everything
Columns = NDArray[np.int64]


class Reader(Protocol):
    """What a layer would lose, as a share of its outputs' energy, float64."""

    def costs(self, units: Columns) -> Doubles:
        """With each of these units gone, if the others make up for it as well as they can."""

    def remove(self, units: Columns) -> None:
        """From now on without these units."""

    def parts(self) -> Doubles:
        """The energy of the part of the outputs that comes from each unit, [width]."""

    def products(self) -> Doubles:
        """Of the parts of each two units, summed over the samples, [width, width]."""


@dataclass
class Seen:
    """A layer whose inputs were seen; what is removed from it the rest makes up for.

    Attributes:
        rows: W, float64 [channels, columns]; changed by ``remove``.
        h: Σ(x−x̄)(x−x̄)ᵀ, damped, float64 [columns, columns].
        energy: what the layer's outputs vary, in the unit of W·H·Wᵀ.
        columns: of each unit, [width, columns of a unit].
        own: the unit that goes with each row, [channels]; -1 for rows that stay.
    """

    rows: Doubles
    h: Doubles
    energy: float
    columns: Columns
    own: Columns
    inverse: Doubles = field(init=False)

    def __post_init__(self) -> None:
        self.inverse = np.asarray(linalg.inv(self.h, check_finite=False), np.float64)

    def costs(self, units: Columns) -> Doubles:
        """tr(W_c·(H⁻¹)_cc⁻¹·W_cᵀ): optimal brain surgeon for blocks (Hassibi and Stork 1993)."""
        columns = self.columns[units]
        blocks = np.linalg.inv(self.inverse[columns[:, :, None], columns[:, None, :]])
        return self._quadratic(units, np.asarray(blocks, np.float64))

    def remove(self, units: Columns) -> None:
        """W − W_c·(H⁻¹)_cc⁻¹·(H⁻¹)_c, and the same for H⁻¹; their own rows go."""
        gone = self.columns[units].reshape(-1)
        block = self.inverse[np.ix_(gone, gone)]
        turned = np.asarray(np.linalg.solve(block, self.inverse[gone]), np.float64)
        for matrix in (self.rows, self.inverse):
            _subtract(matrix, matrix[:, gone], turned)
        self.rows[:, gone] = 0.0
        self.rows[np.isin(self.own, units)] = 0.0
        self.inverse[gone, gone] = 1.0  # of what is gone nothing is read again

    def parts(self) -> Doubles:
        """tr(W_c·H_cc·W_cᵀ)."""
        columns = self.columns
        return self._quadratic(self._all, self.h[columns[:, :, None], columns[:, None, :]])

    def products(self) -> Doubles:
        """Σ (H∘WᵀW) over the columns of both units (He et al. 2017, without stored activations)."""
        weights = np.zeros_like(self.rows)
        weights[:, self.columns] = self._weights(self._all)
        products = self.h * (weights.T @ weights)
        by_row = products[self.columns].sum(axis=1)  # [width, all columns]
        found: Doubles = by_row[:, self.columns].sum(axis=2)
        return found / self.energy

    @property
    def _all(self) -> Columns:
        return np.arange(len(self.columns))

    def _weights(self, units: Columns) -> Doubles:
        """W_c of each unit, 0 in the unit's own rows, [channels, units, columns of a unit]."""
        weights: Doubles = self.rows[:, self.columns[units]]
        weights[self.own[:, None] == units] = 0.0
        return weights

    def _quadratic(self, units: Columns, blocks: Doubles) -> Doubles:
        weights = self._weights(units)
        found: Doubles = np.einsum("muk,ukl,mul->u", weights, blocks, weights, optimize=True)
        return found / self.energy


def _subtract(matrix: Doubles, left: Doubles, right: Doubles) -> None:
    """left·right from a matrix, in place and a part at a time: it may take 170 MB."""
    for start in range(0, len(matrix), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        matrix[part] -= left[part] @ right


@dataclass(frozen=True)
class Apart:
    """A layer of which only the units' own parts are known: nothing makes up for what is removed.

    Attributes:
        sizes: of each unit's part without its own rows, as a share of all, float64 [width].
    """

    sizes: Doubles

    @classmethod
    def by_weights(cls, layer: Layer, columns: Columns, own: Columns) -> Apart:
        """Of a layer of whose inputs nothing is known: as if they were independent and of one size."""

        def sizes(rows: Array) -> Doubles:
            return np.asarray(np.square(rows, dtype=np.float64)[:, columns].sum(axis=2), np.float64)

        rows = layer.rows()
        energy = sum(float(np.square(rows[part], dtype=np.float64).sum()) for part in in_parts(rows))
        return cls(_total(sizes, rows, own, len(columns)) / (energy or 1.0))

    @classmethod
    def by_rows(cls, layer: Layer, columns: Columns, own: Columns, pairs: RowPairs) -> Apart:
        """Of a layer with too many columns for H: Σ(w_c·(x_c − x̄_c))² over rows that it reads."""
        x, y = pairs.of(0)
        x = x - x.mean(axis=0) if layer.can_shift and len(x) else x

        def sizes(rows: Array) -> Doubles:
            parts = (np.square(rows[:, unit] @ x[:, unit].T, dtype=np.float64) for unit in columns)
            return np.stack([part.sum(axis=1) for part in parts], axis=1)

        energy = float(np.square(y - y.mean(axis=0), dtype=np.float64).sum()) if len(y) else 0.0
        return cls(_total(sizes, layer.rows(), own, len(columns)) / (energy or 1.0))

    def costs(self, units: Columns) -> Doubles:
        """Nothing can make up for them."""
        found: Doubles = self.sizes[units]
        return found

    def remove(self, units: Columns) -> None:
        """Changes nothing for the others."""

    def parts(self) -> Doubles:
        """As ``costs``."""
        return self.sizes

    def products(self) -> Doubles:
        """Those of different units are 0."""
        return np.diag(self.sizes)


def _total(sizes: Callable[[Array], Doubles], rows: Array, own: Columns, units: int) -> Doubles:
    """The sum over a weight's rows of each unit's size in them, [rows, units]; 0 in the unit's own rows."""
    found = np.zeros(units)
    for part in in_parts(rows):
        found += np.where(own[part, None] == np.arange(units), 0.0, sizes(rows[part])).sum(axis=0)
    return found


def readers(group: Group, layer: Layer, known: Shares | RowPairs | None) -> Iterator[Reader]:
    """The readers of a group that a layer is, one for each of its own groups.

    Args:
        group: of channels.
        layer: one that consumes it.
        known: of its inputs and outputs; None if nothing is.
    """
    columns, own = unit_columns(group, layer), _own_rows(group, layer)
    if known is None:
        yield Apart.by_weights(layer, columns, own.reshape(-1))
        return
    if isinstance(known, RowPairs):
        yield Apart.by_rows(layer, columns, own.reshape(-1), known)
        return
    sums = known.fit
    for index, rows in enumerate(layer.fit().rows):
        mean = sums.x[index] / max(sums.count, 1) if layer.can_shift else np.zeros(layer.columns)
        h = np.outer(-sums.count * mean, mean)
        h += sums.xx[index]  # in place, as below: it may take 170 MB
        h[np.diag_indices(layer.columns)] += DAMP * (float(np.trace(h)) / layer.columns or 1.0)
        energy = float(variation(sums)[index].sum()) or 1.0
        yield Seen(rows, h, energy, columns, own[index])


def unit_columns(group: Group, layer: Layer) -> Columns:
    """The columns of each unit, [width, columns of a unit]."""
    units = _units(group, layer)
    order = np.argsort(units, kind="stable")
    inside = order[units[order] >= 0]
    return inside.reshape(group.width, -1)


def _own_rows(group: Group, layer: Layer) -> Columns:
    """The unit that each row of a layer makes, [groups, channels/groups]; -1 for those of other groups."""
    shape = (layer.groups, layer.channels // layer.groups)
    for member in group.producers:
        if member.port is not None and member.port.node is layer.node and member.port.index in layer.weights:
            # all directions of a recurrent layer make the same units
            return np.broadcast_to(member.units.reshape(-1, shape[1]), shape)
    return np.full(shape, -1)


def _units(group: Group, layer: Layer) -> Columns:
    """The unit that each column belongs to; -1 for others."""
    parts = [_of_weight(group, layer, index, size) for index, size in layer.weights.items()]
    return np.repeat(np.concatenate(parts), layer.kernel)


def _of_weight(group: Group, layer: Layer, index: int, size: int) -> Columns:
    """The same for one weight of a layer, by the place of it among the inputs."""
    for member in group.consumers:
        if member.port is not None and member.port.node is layer.node and member.port.index == index:
            return member.units
    return np.full(size, -1)
