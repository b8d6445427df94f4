"""Least squares for a layer that reads only some of its columns any longer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.pairs import Shares, Sums
from graphopt_passes.refit.recurrent import Layer
from graphopt_passes.refit.solve import RIDGES, Fit, Problem

Kept = NDArray[np.int64]


def fit_kept(layer: Layer, pairs: Shares, kept: Kept) -> Fit:
    """The weight on some columns, zero on the others, whose ridge is best on samples that fit nothing.

    The weight that there is stays if no fit is better.

    Args:
        layer: gives the weight to start from.
        pairs: what it reads and should give.
        kept: the columns that stay, ascending.
    """
    before = layer.fit()
    start, held = Fit(before.rows[:, :, kept], before.bias), _columns(pairs.held, kept)
    problem = Problem.of(_columns(pairs.fit, kept), start, shifts=layer.can_shift)
    fits = [(None, start), *((ridge, problem.dense(ridge)) for ridge in RIDGES)]
    errors = [fit.relative_error(held) for _, fit in fits]
    ridge, best = fits[int(np.argmin(errors))]
    if ridge is not None:
        whole = _columns(pairs.fit + pairs.held, kept)
        best = Problem.of(whole, start, shifts=layer.can_shift).dense(ridge)
    rows = np.zeros_like(before.rows)
    rows[:, :, kept] = best.rows
    return Fit(rows, best.bias)


def _columns(sums: Sums, kept: Kept) -> Sums:
    xx = sums.xx[:, kept][:, :, kept]
    return Sums(xx, sums.xy[:, kept], sums.x[:, kept], sums.y, sums.yy, sums.count)
