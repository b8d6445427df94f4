"""Layers that read channels of a group, as what a choice of channels needs to know of them.

A layer sums over columns; each unit of a group stands for some of them: the kernel positions of a channel,
the pixels of one behind Flatten. A Conv with groups of channels counts as several readers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.accumulators import Doubles
from graphopt.runtime.pairs import Sums
from graphopt_passes.axes import Group, Member
from graphopt_passes.refit.linear import Linear
from graphopt_passes.refit.solve import variation

DAMP = 1e-2  # part of the mean of H's diagonal: samples do not show everything
Columns = NDArray[np.int64]


@dataclass
class Reader:
    """A layer whose inputs are removed one unit after the other, the rest making up for it.

    Attributes:
        rows: W, float64 [channels, columns]; changed by ``remove``.
        h: Σ(x−x̄)(x−x̄)ᵀ, damped, float64 [columns, columns].
        energy: what the layer's outputs vary, in the unit of W·H·Wᵀ.
        columns: of each unit, [width, columns of a unit].
    """

    rows: Doubles
    h: Doubles
    energy: float
    columns: Columns
    inverse: Doubles = field(init=False)

    def __post_init__(self) -> None:
        self.inverse = np.asarray(np.linalg.inv(self.h), np.float64)

    def costs(self, units: Columns) -> Doubles:
        """What is lost if one of these units goes and the others make up for it: tr(W_c·(H⁻¹)_cc⁻¹·W_cᵀ).

        That is optimal brain surgeon for blocks (Hassibi and Stork 1993), as a share of the outputs' energy.
        """
        columns = self.columns[units]
        blocks = np.linalg.inv(self.inverse[columns[:, :, None], columns[:, None, :]])
        weights = self.rows[:, columns]  # [channels, units, columns of a unit]
        lost: Doubles = np.einsum("muk,ukl,mul->u", weights, blocks, weights, optimize=True)
        return lost / self.energy

    def remove(self, units: Columns) -> None:
        """Remove units, and let the others make up for it."""
        gone = self.columns[units].reshape(-1)
        turned = np.linalg.solve(self.inverse[np.ix_(gone, gone)], self.inverse[gone])
        self.rows = self.rows - self.rows[:, gone] @ turned
        self.inverse = self.inverse - self.inverse[:, gone] @ turned
        self.rows[:, gone] = 0.0
        self.inverse[gone, gone] = 1.0  # of what is gone nothing is read again


def readers(group: Group, layer: Linear, sums: Sums | None) -> Iterator[Reader]:
    """The readers of a group that a layer is, one for each of its own groups.

    Args:
        group: of channels.
        layer: one that consumes it.
        sums: over its inputs and outputs; None if nothing is known, as if all inputs were alike.
    """
    columns = unit_columns(group, layer)
    fit = layer.fit()
    for index, rows in enumerate(fit.rows):
        if sums is None:
            yield Reader(rows, np.eye(layer.columns), float(np.square(rows).sum()) or 1.0, columns)
            continue
        mean = sums.x[index] / max(sums.count, 1) if layer.can_shift else np.zeros(layer.columns)
        h = sums.xx[index] - sums.count * np.outer(mean, mean)
        scale = float(np.trace(h)) / layer.columns or 1.0
        energy = float(variation(sums)[index].sum()) or 1.0
        yield Reader(rows, h + DAMP * scale * np.eye(layer.columns), energy, columns)


def unit_columns(group: Group, layer: Linear) -> Columns:
    """The columns of each unit, [width, columns of a unit]."""
    units = np.repeat(member_of(group, layer).units, layer.kernel)
    order = np.argsort(units, kind="stable")
    inside = order[units[order] >= 0]
    return inside.reshape(group.width, -1)


def member_of(group: Group, layer: Linear) -> Member:
    """The axis of a layer's weight that holds a group's units."""
    return next(
        member
        for member in group.consumers
        if member.port is not None and member.port.node is layer.node and member.port.index == 1
    )
