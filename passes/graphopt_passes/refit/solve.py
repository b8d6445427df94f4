"""Layer-wise least squares: the weight with which a layer gives from its inputs x what it should give, y.

    W, b = argmin Σ‖W·x + b − y‖² + λ·‖W − W₀‖²

With sums about the means, H = Σ(x−x̄)(x−x̄)ᵀ and T = Σ(x−x̄)(y−ȳ)ᵀ, this is

    (H + λI)·Wᵀ = T + λ·W₀ᵀ,    b = ȳ − W·x̄

for a full W, and row by row with the columns of H that a row has, if the others are to be 0: the exact
minimum on that mask, where masks alone leave a weight as it was (He et al. 2017, §3.1, for channels; Frantar
and Alistarh 2022 for masks). λ pulls towards the weight W₀ that there was, since samples do not show
everything. Weights are [groups, channels/groups, columns] here, as :class:`.Sums` has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.accumulators import Array, Doubles
from graphopt.runtime.pairs import Sums

_STEPS = 30
_VARIED = 1e-6
_TINY = float(np.finfo(np.float32).tiny)
_TOLERANCE = 1e-5  # beside what a row starts from without any weight

RIDGES = (1e-3, 1e-2, 1e-1)
"""λ as parts of the mean of H's diagonal."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Fit:
    """A layer's weight and bias.

    Attributes:
        rows: float64 [groups, channels/groups, columns]; float32 of layers whose moments are not built.
        bias: [groups, channels/groups], as ``rows``.
    """

    rows: Array
    bias: Array

    def error(self, sums: Sums) -> Doubles:
        """Σ(W·x + b − y)² per channel, float64 [groups, channels/groups]."""
        w, b = self.rows, self.bias
        quadratic = np.einsum("gck,gck->gc", w @ sums.xx, w) - 2 * np.einsum("gck,gkc->gc", w, sums.xy)
        linear = np.einsum("gck,gk->gc", w, sums.x)
        found: Doubles = quadratic + sums.yy + b * (2 * (linear - sums.y) + sums.count * b)
        return np.maximum(found, 0.0)

    def relative_error(self, sums: Sums) -> float:
        """The error of all channels beside what they vary: 1 for a layer that gives its means."""
        return share(self.error(sums).sum(), variation(sums).sum(), sums.yy.sum())


def share(error: float, varied: float, energy: float) -> float:
    """An error beside Σ(y − ȳ)², or beside Σy² where next to nothing varies, as in a single row."""
    whole = varied if varied > _VARIED * energy else energy
    return float(error / max(float(whole), _TINY))


def variation(sums: Sums) -> Doubles:
    """Σ(y − ȳ)² per channel, float64 [groups, channels/groups]."""
    return np.maximum(sums.yy - sums.y**2 / max(sums.count, 1), 0.0)


@dataclass(frozen=True)
class Problem:
    """Least squares of one layer.

    Attributes:
        h: H, float64 [groups, columns, columns].
        t: T, float64 [groups, columns, channels/groups].
        start: the weight W₀ and its bias.
        shifts: whether b is free; else it stays, and H and T are about 0.
        x, y: the means of what is read and should be given.
    """

    h: Doubles
    t: Doubles
    start: Fit
    shifts: bool
    x: Doubles
    y: Doubles

    @classmethod
    def of(cls, sums: Sums, start: Fit, *, shifts: bool) -> Problem:
        """From sums over pairs of rows."""
        count = max(sums.count, 1)
        x, y = sums.x / count, sums.y / count
        if shifts:
            h = np.einsum("gi,gj->gij", -count * x, x)
            h += sums.xx  # in place, as below: it may take 170 MB
            t = sums.xy - count * np.einsum("gi,gj->gij", x, y)
        else:
            h, t = sums.xx, sums.xy - np.einsum("gi,gj->gij", sums.x, start.bias)
        return cls(h, t, start, shifts, x, y)

    def damped(self, ridge: float) -> tuple[Doubles, Doubles]:
        """H + λI and T + λW₀ᵀ for λ as a part of the mean of H's diagonal, group by group."""
        scale = np.einsum("gii->g", self.h) / self.h.shape[-1]
        damping = np.where(scale > 0, ridge * scale, 1.0)[:, None]
        h = self.h.copy()
        np.einsum("gii->gi", h)[...] += damping  # a view of the diagonals
        return h, self.t + damping[:, None] * self.start.rows.swapaxes(1, 2)

    def dense(self, ridge: float) -> Fit:
        """All of W."""
        h, t = self.damped(ridge)
        rows = np.asarray(np.linalg.solve(h, t).swapaxes(1, 2), np.float64)
        return self.with_bias(rows)

    def masked(self, mask: Mask, ridge: float) -> Fit:
        """W on a mask [groups, channels/groups, columns], zero elsewhere."""
        h, t = self.damped(ridge)
        start = np.where(mask, self.start.rows, 0.0)
        diagonal = np.einsum("gkk->gk", h)[:, None]
        return self.with_bias(descended(lambda w: w @ h, diagonal, t.swapaxes(1, 2), start, mask))

    def with_bias(self, rows: Doubles) -> Fit:
        """A weight with the bias that suits it best."""
        if not self.shifts:
            return Fit(rows, self.start.bias)
        return Fit(rows, self.y - np.einsum("gck,gk->gc", rows, self.x))


def descended(times: Callable[[Array], Array], diagonal: Array, t: Array, w: Array, mask: Mask) -> Array:
    """The w on a mask with (w·H − t) = 0 there, by conjugate gradients, all rows at once.

    Each row has a system of its own, whose matrix is never built. Few steps do where samples determine the
    weight; where they do not, ending early keeps it near its start, which is as well (Hestenes and Stiefel
    1952; scaled by the diagonal of H).

    Args:
        times: w·H of some rows [..., channels, columns].
        diagonal: of H, to be broadcast against w.
        t: what w·H is to be.
        w: to start from, zero off the mask; float32 or float64, as all others.
        mask: as w.
    """
    missing = np.where(mask, t - times(w), 0.0)
    enough = _TOLERANCE**2 * _dot(np.where(mask, t, 0.0), t / diagonal)
    step = missing / diagonal
    size = _dot(missing, step)
    for _ in range(_STEPS):
        if (size <= enough).all():
            break
        image = np.where(mask, times(step), 0.0)
        length = _ratio(size, _dot(step, image))
        w = w + length * step
        missing -= length * image
        before, size = size, _dot(missing, missing / diagonal)
        step = missing / diagonal + _ratio(size, before) * step
    return w


def _dot(a: Array, b: Array) -> Array:
    """Row by row, [..., channels]."""
    found: Array = np.einsum("...k,...k->...", a, b)
    return found


def _ratio(a: Array, b: Array) -> Array:
    """a/b for each row, to be multiplied with it; 0 for a row that is done."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)[..., None]
