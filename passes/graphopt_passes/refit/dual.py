"""Least squares of a layer with too many columns for H, from rows that it reads: the dual form.

With X and R, what is missing of what it should give, about their means where b is free,

    ΔW = Rᵀ·(X·Xᵀ + λI)⁻¹·X,    R = Y − X·W₀ᵀ − b₀

is the minimum that :mod:`.solve` finds (Saunders, Gammerman and Vovk 1998), from a matrix of as many rows as
there are. The weight is read and made a part at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.accumulators import Doubles
from graphopt.runtime.pairs import RowPairs
from graphopt_passes.refit.linear import Linear, in_parts
from graphopt_passes.refit.solve import RIDGES, Fit

Floats = NDArray[np.float32]
Columns = NDArray[np.int64]

_COLUMNS = 1 << 11  # of X


def fit_rows(layer: Linear, pairs: RowPairs, columns: Columns, *, final: bool = True) -> Fit:
    """The weight on some columns, zero on the others, whose ridge is best on rows that fit nothing.

    The weight that there is stays if no fit is better.

    Args:
        layer: gives the weight to start from; it has one group.
        pairs: rows of what it reads and should give.
        columns: those that stay, ascending.
        final: whether these rows are fitted to as well in the end.

    Returns:
        W and b, float32.
    """
    fit, held = (_Rows.of(layer, pairs, share, columns) for share in range(2))
    system = _System.of(fit, layer.can_shift)
    ridge = _best_ridge(system, held if len(held.x) else fit)
    if final and ridge is not None:
        system = _System.of(fit + held, layer.can_shift)
    found = None if ridge is None else system.change(ridge)
    rows, bias = np.zeros((layer.channels, layer.columns), np.float32), layer.bias()
    for part, weight in _parts(layer, columns):
        rows[part, columns] = weight if found is None else weight + found.weight(part)
    if found is not None and layer.can_shift:
        bias = bias + found.shift.astype(np.float32)
    return Fit(rows[None], bias[None])


@dataclass(frozen=True)
class _Rows:
    """Rows that a layer reads, and what is missing of what it should give.

    Attributes:
        x: [n, columns].
        r: [n, channels].
    """

    x: Floats
    r: Floats

    @classmethod
    def of(cls, layer: Linear, pairs: RowPairs, share: int, columns: Columns) -> _Rows:
        x, y = pairs.of(share)
        x, missing = x[:, columns], y - layer.bias()
        for part, weight in _parts(layer, columns):
            missing[:, part] -= x @ weight.T
        return cls(x, missing)

    def __add__(self, other: _Rows) -> _Rows:
        return _Rows(np.concatenate([self.x, other.x]), np.concatenate([self.r, other.r]))

    def means(self, shifts: bool) -> tuple[Floats, Floats]:
        """Of x and r; 0 where b is not free."""
        share = np.full(len(self.x), shifts / max(len(self.x), 1), np.float32)
        return share @ self.x, share @ self.r


@dataclass(frozen=True)
class _System:
    """What is solved for some rows, with any ridge.

    Attributes:
        x: X, [n, columns].
        r: R, float64 [n, channels].
        center: the means of both, which are taken from them; 0 where b is not free.
        products: X·Xᵀ, float64.
    """

    x: Floats
    r: Doubles
    center: tuple[Floats, Floats]
    products: Doubles

    @classmethod
    def of(cls, rows: _Rows, shifts: bool) -> _System:
        center = rows.means(shifts)
        x, products = rows.x - center[0], np.zeros((len(rows.x), len(rows.x)))
        for start in range(0, x.shape[1], _COLUMNS):
            part = x[:, start : start + _COLUMNS].astype(np.float64)
            products += part @ part.T
        return cls(x, (rows.r - center[1]).astype(np.float64), center, products)

    def change(self, ridge: float) -> _Change:
        """For λ as a part of the mean of the diagonal of H."""
        damped = self.products.copy()
        damped[np.diag_indices(len(damped))] += ridge * np.trace(damped) / self.x.shape[1] or 1.0
        return _Change(self.x, np.asarray(np.linalg.solve(damped, self.r), np.float64), self.center)


@dataclass(frozen=True)
class _Change:
    """What is added to a weight and its bias.

    Attributes:
        x: X, [n, columns].
        factors: (X·Xᵀ + λI)⁻¹·R, float64 [n, channels].
        center: the means of both; 0 where b is not free.
    """

    x: Floats
    factors: Doubles
    center: tuple[Floats, Floats]

    def error(self, rows: _Rows) -> float:
        """Σ‖R‖² that is left on some rows."""
        made = ((rows.x - self.center[0]) @ self.x.T) @ self.factors + self.center[1]
        return float(np.square(rows.r - made).sum())

    def weight(self, part: slice) -> Floats:
        """ΔW of some channels."""
        return self.factors[:, part].T.astype(np.float32) @ self.x

    @property
    def shift(self) -> Doubles:
        """Δb."""
        return np.asarray(self.center[1] - (self.x @ self.center[0]) @ self.factors, np.float64)


def _best_ridge(system: _System, judge: _Rows) -> float | None:
    """The ridge that errs least on other rows; None if no change is better than none."""
    errors: dict[float | None, float] = {None: float(np.square(judge.r, dtype=np.float64).sum())}
    for ridge in RIDGES if len(system.x) else ():
        errors[ridge] = system.change(ridge).error(judge)
    return min(errors, key=lambda one: errors[one])


def _parts(layer: Linear, columns: Columns) -> Iterator[tuple[slice, Floats]]:
    """The weight on some columns, some channels at a time."""
    rows = layer.rows()
    for part in in_parts(rows):
        yield part, np.asarray(rows[part][:, columns], np.float32)
