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
    start = Fit(before.rows[:, :, kept], before.bias)
    fit, held = _columns(pairs.fit, kept), _columns(pairs.held, kept)
    ridge = _best_ridge(Problem.of(fit, start, shifts=layer.can_shift), held)
    best = start
    if ridge is not None:
        best = Problem.of(fit + held, start, shifts=layer.can_shift).dense(ridge)
    rows = np.zeros_like(before.rows)
    rows[:, :, kept] = best.rows
    return Fit(rows, best.bias)


def _best_ridge(problem: Problem, held: Sums) -> float | None:
    """The ridge that errs least on other samples; None if no fit is better than the start."""
    errors: dict[float | None, float] = {None: problem.start.relative_error(held)}
    for ridge in RIDGES:  # one weight at a time is in memory
        errors[ridge] = problem.dense(ridge).relative_error(held)
    return min(errors, key=lambda one: errors[one])


def _columns(sums: Sums, kept: Kept) -> Sums:
    if len(kept) == sums.xx.shape[-1]:  # a copy may take 170 MB
        return sums
    xx = sums.xx[:, kept][:, :, kept]
    return Sums(xx, sums.xy[:, kept], sums.x[:, kept], sums.y, sums.yy, sums.count)
