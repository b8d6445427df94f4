"""Blocks of integers fitted to what the layer multiplies them with.

The error of a layer on its samples is tr(E·H·Eᵀ) with E = W − Ŵ and the moments H = Σ x·xᵀ. Columns are
rounded with error feedback first (:mod:`graphopt_passes.quantize.rounding`), on grids that weigh each column
with its energy. Then scales and integers take turns, each set to the exact minimum while all others stay:

    scale of block B:  s += (E·H·c)/(c·H·c)                with c the block's q − z, else 0
    integer k:         q = round(q + (E·H)ₖ/(s·Hₖₖ))       within its levels

so that no step raises the error (coordinate descent, as of QuantEase, Behdin et al. 2023, which leaves the
scales as they are). With moments of 0 but on the diagonal it ends with rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.quantize.rounding import Steps, damped, rounded
from graphopt_passes.quantize.scheme import Array
from graphopt_passes.weights.blocks import FINE_CLIPS, Blocked, Grid, Inputs, grid_of, levels

Doubles = NDArray[np.float64]

SWEEPS = 4
_ROWS = 1 << 21  # numbers of the rows that are fitted together


def fitted(  # noqa: PLR0913 - what a fit depends on
    w: Array,
    moments: Doubles,
    bits: int,
    block: int,
    *,
    symmetric: bool,
    damp: float = 0.01,
    sweeps: int = SWEEPS,
) -> Blocked:
    """The weight with the least error that this finds.

    Args:
        w: rows [channels, columns], floating point.
        moments: Σ x·xᵀ of the layer's input, [columns, columns], in any unit.
        bits: 4 or 8.
        block: numbers of a block.
        symmetric: whether zero points are fixed in the middle.
        damp: what is added to the moments' diagonal, as a part of its mean: samples do not show everything.
        sweeps: how often scales and integers take turns.

    Raises:
        ValueError: the weight or the moments hold NaN or infinity, or do not fit each other.
    """
    energy = Inputs(np.diag(moments))  # rounding makes up for what the mean shifts
    grid = grid_of(w, bits, block, symmetric=symmetric, inputs=energy, clips=FINE_CLIPS)
    integers, scales = np.empty(w.shape, np.uint8), np.empty_like(grid.scales)
    known = damped(np.asarray(moments, np.float64), damp)
    for part in _parts(w):
        rows = np.asarray(w[part], np.float64)
        integers[part], scales[part] = _fit(rows, grid.of(part), moments, known, damp, sweeps)
    return Blocked(integers, Grid(scales, grid.zeros, bits, block))


def _parts(w: Array) -> Iterator[slice]:
    step = max(_ROWS // max(w.shape[1], 1), 1)
    return (slice(start, min(start + step, len(w))) for start in range(0, len(w), step))


def _fit(  # noqa: PLR0913, PLR0917 - what it computes from
    w: Doubles, grid: Grid, moments: Doubles, known: Doubles, damp: float, sweeps: int
) -> tuple[Array, Array]:
    size, zeros = grid.expanded(w.shape[1])
    steps = rounded(w, Steps(size, -zeros, levels(grid.bits) - zeros), moments, damp=damp)
    descent = _Descent(w, steps, grid, known)
    for _ in range(sweeps):
        descent.sweep()
    return (descent.steps.T + zeros).astype(np.uint8), descent.scales.T.astype(np.float32)


class _Descent:
    """Coordinate descent over scales and integers, transposed: a column of the weight is contiguous.

    Attributes:
        steps: q − z, of which the weight is made, [columns, channels].
        scales: [blocks, channels].
        wrong: W − Ŵ, [columns, channels].
    """

    def __init__(self, w: Doubles, steps: Doubles, grid: Grid, moments: Doubles) -> None:
        size, zeros = (np.ascontiguousarray(found.T) for found in grid.expanded(w.shape[1]))
        self.steps, self.moments, self.block = np.ascontiguousarray(steps.T), moments, grid.block
        self.scales = np.ascontiguousarray(grid.scales.T, np.float64)
        self.least, self.most = (np.where(w.T == 0, 0, end) for end in (-zeros, levels(grid.bits) - zeros))
        self.wrong = w.T - self.steps * size

    def sweep(self) -> None:
        """Once through all blocks."""
        for index in range(len(self.scales)):
            columns = slice(index * self.block, min((index + 1) * self.block, len(self.wrong)))
            pull = self.moments[columns] @ self.wrong  # half the gradient, by the block's columns
            self._scale(index, columns, pull)
            self._integers(index, columns, pull)

    def _scale(self, index: int, columns: slice, pull: Doubles) -> None:
        steps = self.steps[columns]
        spread = self.moments[columns, columns] @ steps
        energy = np.einsum("kc,kc->c", spread, steps)
        change = np.divide(
            np.einsum("kc,kc->c", pull, steps), energy, out=np.zeros_like(energy), where=energy > 0
        )
        change[self.scales[index] + change <= 0] = 0
        self.scales[index] += change
        self.wrong[columns] -= change * steps
        pull -= change * spread

    def _integers(self, index: int, columns: slice, pull: Doubles) -> None:
        scale, moments = self.scales[index], self.moments[columns, columns]
        for offset, k in enumerate(range(columns.start, columns.stop)):
            aim = self.steps[k] + pull[offset] / (scale * moments[offset, offset])
            found = np.clip(np.rint(aim), self.least[k], self.most[k])
            change = scale * (found - self.steps[k])
            self.steps[k] = found
            self.wrong[k] -= change
            pull -= moments[offset][:, None] * change
