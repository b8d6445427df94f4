"""Layers with too many columns for their moments H: made sparse with rows of their inputs, X.

H = XᵀX is never built: v·H is (v·Xᵀ)·X, and channels are taken a few at a time, so that a Gemm of 25,088
columns, whose H would take 5 GB, needs no more than its rows and its weight. Masks are those of |w|·‖x‖, row
by row, since the others need the inverse of H.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.pairs import RowPairs
from graphopt_passes.refit.linear import Linear, in_parts
from graphopt_passes.refit.solve import Fit, descended, share
from graphopt_passes.sparsify import masks
from graphopt_passes.sparsify.patterns import Anywhere, Groups, Mask, Pattern, along_channels

Floats = NDArray[np.float32]

_RIDGE = 1e-2  # part of the mean of H's diagonal
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Wide:
    """One such layer.

    Attributes:
        layer: gives the weight.
        pairs: rows of what it reads and should give.
        by_size: whether |w| alone chooses.
        refit: whether what is left is fitted to make up for what is not.
    """

    layer: Linear
    pairs: RowPairs
    by_size: bool
    refit: bool

    def sparse(self, pattern: Pattern | None, every: int = 1) -> tuple[Fit, float]:
        """The layer on a mask, and its error on rows that it was not fitted to.

        Args:
            pattern: what stays of each channel; None for all.
            every: only every so many-th channel; the fit is of those.
        """
        rows, bias = self.layer.rows()[::every], self.layer.bias()[::every].astype(np.float32)
        found, judged = np.empty(rows.shape, np.float32), np.zeros(3)
        for part in in_parts(rows):
            start = np.asarray(rows[part], np.float32)
            mask = None if pattern is None else self._mask(start, pattern)
            found[part] = self._left(start, bias[part], mask, self._y[:, ::every][:, part])
            if self.layer.can_shift and self.refit:
                bias[part] = self._y[:, ::every][:, part].mean(0) - self._means @ found[part].T
            judged += self._judged(found[part], bias[part], every, part)
        return Fit(found[None], bias[None]), share(*judged.tolist())

    @cached_property
    def _x(self) -> Floats:
        return self.pairs.of(0)[0]

    @cached_property
    def _y(self) -> Floats:
        return self.pairs.of(0)[1]

    @cached_property
    def _means(self) -> Floats:
        found: Floats = self._x.mean(axis=0)
        return found

    @cached_property
    def _centred(self) -> Floats:
        return self._x - self._means if self.layer.can_shift else self._x

    @cached_property
    def _energy(self) -> Floats:
        """The diagonal of H, damped."""
        found: Floats = np.square(self._centred).sum(axis=0)
        found += np.float32(_RIDGE * found.mean() + _TINY)
        return found

    def _mask(self, rows: Floats, pattern: Pattern) -> Mask:
        """A mask of each row alone."""
        order = along_channels(self.layer.columns, self.layer.kernel if isinstance(pattern, Groups) else 1)
        scores = np.abs(rows) if self.by_size else np.abs(rows) * np.sqrt(self._energy)
        if isinstance(pattern, Anywhere):
            return np.concatenate([pattern.mask(one[None].astype(np.float64)) for one in scores])
        mask = np.empty(rows.shape, bool)
        mask[:, order] = masks.magnitude(scores[None, :, order].astype(np.float64), pattern)[0]
        return mask

    def _left(self, start: Floats, bias: Floats, mask: Mask | None, y: Floats) -> Floats:
        """What is left of some channels."""
        mask = np.ones(start.shape, bool) if mask is None else mask
        kept = np.where(mask, start, np.float32(0))
        if not self.refit or not len(self._x):
            return kept
        x = self._centred
        target = y - (y.mean(axis=0) if self.layer.can_shift else bias)
        ridge = np.float32(self._energy.mean() * _RIDGE / (1 + _RIDGE))

        def times(w: Floats) -> Floats:
            found: Floats = (w @ x.T) @ x + ridge * w
            return found

        aim = target.T @ x + ridge * start
        return descended(times, self._energy, aim, kept, mask)

    def _judged(self, rows: Floats, bias: Floats, every: int, part: slice) -> tuple[float, float, float]:
        """Σ(W·x + b − y)², Σ(y − ȳ)² and Σy² on the rows that judge, or on all if none do."""
        x, y = self._held
        y = y[:, ::every][:, part]
        wrong = float(np.square(x @ rows.T + bias - y).sum())
        return wrong, float(np.square(y - y.mean(axis=0)).sum()), float(np.square(y).sum())

    @cached_property
    def _held(self) -> tuple[Floats, Floats]:
        x, y = self.pairs.of(1)
        return (x, y) if len(x) > 1 else (self._x, self._y)
