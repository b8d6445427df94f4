"""Rounding with error feedback: columns that are still to be rounded make up for the errors of those before.

The error of a layer y = W·x on its samples is tr(ΔW·H·ΔWᵀ) with the moments H = Σ x·xᵀ. Rounding to nearest
minimizes each Δw² alone; GPTQ (Frantar et al. 2023) rounds column by column and adds each error to the rest.
Computed here in the equivalent form of LDLQ (Chee et al. 2023, theorem 6), which needs no inverse:

    H = (U + I)·D·(U + I)ᵀ, U strictly upper    ŵₖ = round(wₖ + Σⱼ₍ⱼ﹤ₖ₎ (wⱼ − ŵⱼ)·Uⱼₖ)

so that the error is Σₖ Dₖ·(error of rounding column k)². Columns of high energy go first (GPTQ's
activation order). All channels of a group go together; each is kept only if it beats rounding to nearest.

Scales may be one per channel, or differ from block to block of the columns (:class:`Steps`); all that changes
is the grid on which a column is rounded.

Weights are rows [channels, columns] as in :mod:`graphopt_passes.quantize.weights`; moments are [columns,
columns], or [groups, columns, columns] where a Conv has groups, symmetric, in any unit. If a bias takes up
the mean error of the output, moments about the mean are the ones to give.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.quantize.scheme import Array
from graphopt_passes.quantize.weights import limit

Doubles = NDArray[np.float64]

_BLOCK = 128  # columns whose errors are fed back one by one; between blocks it is one matrix product


def feedback(
    w: Array, scales: Array, moments: Array, *, damp: float = 0.01, bits: int = 8
) -> NDArray[np.int8]:
    """The integers of a weight, rounded with error feedback.

    Args:
        w: rows, floating point [channels, columns].
        scales: [channels], or [1] for all.
        moments: of the layer's input as the quantized model has it.
        damp: what is added to the diagonal, as a part of its mean.
        bits: 8, or 7 where products of u8 and s8 saturate.

    Returns:
        int8 [channels, columns]; in no channel is the error above that of rounding to nearest.

    Raises:
        ValueError: the moments do not fit the weight, or hold NaN or infinity.
    """
    steps = np.broadcast_to(np.asarray(scales, np.float64).reshape(-1, 1), w.shape)
    return rounded(w, Steps(steps, -limit(bits), limit(bits)), moments, damp=damp).astype(np.int8)


@dataclass(frozen=True)
class Steps:
    """Grids that may differ from number to number, as those of blocks do: w ≈ i·size, least ≤ i ≤ most.

    Attributes:
        size: float64 [channels, columns], positive.
        least, most: of the same shape, or one number for all.
    """

    size: Array
    least: Array | int
    most: Array | int

    def of(self, channels: slice) -> Steps:
        """Those of some channels."""
        least, most = (found if isinstance(found, int) else found[channels] for found in self._ends)
        return Steps(self.size[channels], least, most)

    def turned(self, columns: Array) -> Steps:
        """[columns, channels], the columns in another order."""
        size, least, most = (np.broadcast_to(part, self.size.shape) for part in (self.size, *self._ends))
        return Steps(*(np.ascontiguousarray(part[:, columns].T) for part in (size, least, most)))

    def sparing(self, zero: Array) -> Steps:
        """The same, but only 0 where the weight is zero."""
        if not zero.any():
            return self
        least, most = (np.where(zero, 0, found) for found in self._ends)
        return Steps(self.size, least, most)

    def nearest(self, w: Array) -> Doubles:
        """The nearest integers."""
        return np.asarray(np.clip(np.rint(w / self.size), self.least, self.most), np.float64)

    @property
    def _ends(self) -> tuple[Array | int, Array | int]:
        return self.least, self.most


def rounded(w: Array, steps: Steps, moments: Array, *, damp: float = 0.01) -> Doubles:
    """As :func:`feedback`, on any steps.

    Returns:
        Whole numbers, float64 [channels, columns]; 0 where the weight is: what was pruned takes no feedback.
    """
    rows = np.asarray(w, np.float64)
    steps = steps.sparing(rows == 0)
    data = np.empty(w.shape)
    for part, own in _groups(moments, w.shape):
        found = _rounded(rows[part], steps.of(part), own, damp)
        data[part] = _better(rows[part], steps.of(part), found, own)
    return data


def corrected(w: Array, moments: Array, cross: Array, *, damp: float = 0.01) -> NDArray[np.float32]:
    """The float weight that makes up for the error of its own input.

    The minimum of ‖W*·X̂ − W·X‖² + λ·‖W* − W‖², W* = W + W·(XX̂ᵀ − X̂X̂ᵀ)·(X̂X̂ᵀ + λI)⁻¹, for the input X of the
    float model and X̂ of the quantized one (the asymmetric objective of AdaRound, Nagel et al. 2020, eq. 25,
    solved for the weight before it is rounded).

    Args:
        w: rows, floating point [channels, columns].
        moments: Σ x̂·x̂ᵀ.
        cross: Σ x·x̂ᵀ over the same samples, of the same shape; not symmetric.
        damp: λ as a part of the mean of the moments' diagonal.

    Returns:
        float32 [channels, columns]; its scales are to be found anew.

    Raises:
        ValueError: the moments do not fit the weight, or hold NaN or infinity.
    """
    found = np.empty(w.shape, np.float32)
    for (part, own), (_, mixed) in zip(_groups(moments, w.shape), _groups(cross, w.shape), strict=True):
        rows = np.asarray(w[part], np.float64)
        missing = (rows @ (mixed - own)).T
        found[part] = rows + np.linalg.solve(damped(own, damp), missing).T
    return found


def output_error(delta: Array, moments: Array) -> Doubles:
    """Σ over samples of (Δw·x)², per channel: the diagonal of ΔW·H·ΔWᵀ, float64 [channels].

    Raises:
        ValueError: the moments do not fit the weight, or hold NaN or infinity.
    """
    found = np.empty(len(delta))
    for part, own in _groups(moments, delta.shape):
        found[part] = _quadratic(np.asarray(delta[part], np.float64), own)
    return found


def _groups(moments: Array, shape: tuple[int, ...]) -> Iterator[tuple[slice, Doubles]]:
    """The channels of each group with its moments."""
    channels, columns = shape
    groups = len(moments) if moments.ndim == 3 else 1
    if moments.shape[-2:] != (columns, columns) or channels % groups:
        raise ValueError(f"moments of shape {moments.shape} for {channels} channels of {columns} columns")
    size = channels // groups
    for group, own in enumerate(moments.reshape(groups, columns, columns)):
        if not np.isfinite(own).all():
            raise ValueError("the moments hold NaN or infinity")
        yield slice(group * size, (group + 1) * size), np.asarray(own, np.float64)


def _rounded(w: Doubles, steps: Steps, moments: Doubles, damp: float) -> Doubles:
    """Integers of weights."""
    columns = np.argsort(-np.diag(moments), kind="stable")
    mixing = _mixing(damped(moments[np.ix_(columns, columns)], damp))
    result = np.empty_like(w)
    result[:, columns] = _fed_back(w[:, columns].T, steps.turned(columns), mixing).T
    return result


def _fed_back(w: Doubles, steps: Steps, mixing: Doubles) -> Doubles:
    """LDLQ, transposed: [columns, channels], so that a column of the weight is contiguous."""
    whole = np.empty(w.shape)
    wrong = np.empty(w.shape)
    for start in range(0, len(w), _BLOCK):
        stop = min(start + _BLOCK, len(w))
        aims = w[start:stop] + mixing[start:stop, :start] @ wrong[:start]
        for k in range(start, stop):
            aim = aims[k - start] + mixing[k, start:k] @ wrong[start:k]
            own = steps.of(slice(k, k + 1))
            whole[k] = own.nearest(aim)[0]
            wrong[k] = w[k] - whole[k] * own.size[0]
    return whole


def _mixing(moments: Doubles) -> Doubles:
    """(U + I)ᵀ of H = (U + I)·D·(U + I)ᵀ, from the Cholesky factor of H with rows and columns reversed."""
    lower = np.linalg.cholesky(moments[::-1, ::-1])
    lower /= np.diag(lower).copy()
    return np.ascontiguousarray(lower[::-1, ::-1].T)


def damped(moments: Doubles, damp: float) -> Doubles:
    """H + λI with λ as a part of the diagonal's mean; the identity where H is 0."""
    result = moments.copy()
    mean = float(np.trace(moments)) / max(len(moments), 1)
    np.einsum("ii->i", result)[:] += damp * mean if mean > 0 else 1.0
    return result


def _better(w: Doubles, steps: Steps, found: Doubles, moments: Doubles) -> Doubles:
    """Per channel, what was found or the nearest integers, whichever has the lower error."""
    nearest = steps.nearest(w)
    wins = _quadratic(found * steps.size - w, moments) < _quadratic(nearest * steps.size - w, moments)
    return np.where(wins[:, None], found, nearest)


def _quadratic(delta: Doubles, moments: Doubles) -> Doubles:
    return np.asarray(np.einsum("ck,ck->c", delta @ moments, delta), np.float64)
