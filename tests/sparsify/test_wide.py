"""Layers of which rows are known, not moments: the same least squares, without H."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from graphopt.runtime.moments import Moments
from graphopt.runtime.pairs import Paired, PairedRows, RowPairs
from graphopt_passes.refit.linear import Linear
from graphopt_passes.refit.solve import Fit, Problem
from graphopt_passes.sparsify.patterns import Anywhere, Groups
from graphopt_passes.sparsify.wide import Wide

COLUMNS, CHANNELS = 96, 12


def layer_of(w: np.ndarray, *, shifts: bool) -> Linear:
    """A layer without a graph."""
    bias = np.zeros(len(w), np.float32)
    return cast(
        Linear,
        SimpleNamespace(
            rows=lambda: w, bias=lambda: bias, can_shift=shifts, columns=COLUMNS, kernel=1, groups=1
        ),
    )


def drawn(seed: int) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """A weight, and samples of what it reads and should give; the sizes of the columns differ."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((CHANNELS, COLUMNS)).astype(np.float32)
    mixing = rng.standard_normal((COLUMNS, COLUMNS)) * rng.exponential(1.0, COLUMNS)
    xs = [np.maximum(rng.standard_normal((16, COLUMNS)) @ mixing, 0).astype(np.float32) for _ in range(24)]
    return w, [(x, x @ w.T + 1) for x in xs]


def rows_of(arrays: list[tuple[np.ndarray, np.ndarray]], most: int = 10**4) -> RowPairs:
    pairs = PairedRows(Moments(COLUMNS), CHANNELS, -1, 4, most).start()
    for x, y in arrays:
        pairs.add(x, y)
    return pairs


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shifts", [True, False])
def test_the_fit_is_that_of_the_moments(seed: int, shifts: bool) -> None:
    w, arrays = drawn(seed)
    fit, error = Wide(layer_of(w, shifts=shifts), rows_of(arrays), by_size=False, refit=True).sparse(
        Anywhere(0.5)
    )
    sums = Paired(Moments(COLUMNS), CHANNELS, -1, 4).start()
    for x, y in arrays:
        sums.add(x, y)
    start = Fit(w[None].astype(np.float64), np.zeros((1, CHANNELS)))
    expected = Problem.of(sums.fit, start, shifts=shifts).masked(fit.rows != 0, 1e-2)
    scale = np.abs(expected.rows).max()
    np.testing.assert_allclose(fit.rows, expected.rows, atol=1e-4 * scale)
    assert error == pytest.approx(expected.relative_error(sums.held), rel=0.05)


def test_what_is_left_makes_up_for_what_went() -> None:
    w, arrays = drawn(0)
    layer, rows = layer_of(w, shifts=True), rows_of(arrays)
    errors = [
        Wide(layer, rows, by_size, refit).sparse(Anywhere(0.4))[1]
        for by_size, refit in ((True, False), (False, False), (False, True))
    ]
    assert errors[2] < 0.6 * errors[1] < 0.6 * errors[0]


def test_patterns_hold() -> None:
    w, arrays = drawn(0)
    wide = Wide(layer_of(w, shifts=True), rows_of(arrays), by_size=False, refit=True)
    kept = wide.sparse(Groups(2, 4))[0].rows[0] != 0
    assert (kept.reshape(CHANNELS, -1, 4).sum(axis=2) == 2).all()
    assert ((wide.sparse(Anywhere(0.25))[0].rows[0] != 0).sum(axis=1) == COLUMNS // 4).all()
    assert wide.sparse(Anywhere(0.25), every=4)[0].rows.shape == (1, 3, COLUMNS)


def test_no_more_rows_are_kept_than_were_asked_for() -> None:
    pairs = rows_of(drawn(0)[1], most=40)
    assert pairs.count == 40
    assert sum(len(pairs.of(share)[0]) for share in range(2)) == 40
