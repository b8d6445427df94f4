"""Least squares for a layer that reads only some of its columns any longer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.pairs import RowPairs, Shares, Sums
from graphopt_passes.refit.dual import fit_rows
from graphopt_passes.refit.linear import Linear
from graphopt_passes.refit.recurrent import Layer
from graphopt_passes.refit.solve import RIDGES, Fit, Problem

Kept = NDArray[np.int64]


def fit_kept(layer: Layer, pairs: Shares | RowPairs, kept: Kept | None, *, final: bool = True) -> Fit:
    """The weight on some columns, zero on the others, whose ridge is best on samples that fit nothing.

    The weight that there is stays if no fit is better.

    Args:
        layer: gives the weight to start from.
        pairs: what it reads and should give.
        kept: the columns that stay, ascending; None for all.
        final: whether the samples that chose the ridge are fitted to as well, once it is chosen; then nothing
            can be judged on them any longer.
    """
    if isinstance(pairs, RowPairs):
        assert isinstance(layer, Linear)
        columns = np.arange(layer.columns) if kept is None else kept
        return fit_rows(layer, pairs, columns, final=final)
    start = layer.fit()
    if kept is None:
        return _fitted(layer, start, pairs.fit, pairs.held, final)
    narrow = Fit(start.rows[:, :, kept], start.bias)
    best = _fitted(layer, narrow, _columns(pairs.fit, kept), _columns(pairs.held, kept), final)
    rows = np.zeros_like(start.rows)
    rows[:, :, kept] = best.rows
    return Fit(rows, best.bias)


def _fitted(layer: Layer, start: Fit, fit: Sums, held: Sums, final: bool) -> Fit:
    problem = Problem.of(fit, start, shifts=layer.can_shift)
    ridge = _best_ridge(problem, held)
    if ridge is None:
        return start
    return (Problem.of(fit + held, start, shifts=layer.can_shift) if final else problem).dense(ridge)


def _best_ridge(problem: Problem, held: Sums) -> float | None:
    """The ridge that errs least on other samples; None if no fit is better than the start."""
    errors: dict[float | None, float] = {None: problem.start.relative_error(held)}
    for ridge in RIDGES:  # one weight at a time is in memory
        errors[ridge] = problem.dense(ridge).relative_error(held)
    return min(errors, key=lambda one: errors[one])


def _columns(sums: Sums, kept: Kept) -> Sums:
    xx = sums.xx[:, kept][:, :, kept]
    return Sums(xx, sums.xy[:, kept], sums.x[:, kept], sums.y, sums.yy, sums.count)
