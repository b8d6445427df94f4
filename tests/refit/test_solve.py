"""Least squares of one layer from sums: beside numpy's on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.runtime.pairs import Sums
from graphopt_passes.refit.solve import Fit, Problem, variation

COLUMNS, CHANNELS, ROWS = 12, 5, 400


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs that are not centred, and outputs that no weight gives exactly."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, COLUMNS)) @ rng.standard_normal((COLUMNS, COLUMNS)) + rng.random(COLUMNS)
    y = np.tanh(x @ rng.standard_normal((COLUMNS, CHANNELS))) + rng.random(CHANNELS)
    return x, y


def sums_of(x: np.ndarray, y: np.ndarray) -> Sums:
    sums = Sums.zeros(1, x.shape[1], y.shape[1])
    sums.take(x[None], y[None])
    return sums


def zeros() -> Fit:
    return Fit(np.zeros((1, CHANNELS, COLUMNS)), np.zeros((1, CHANNELS)))


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_that_of_the_rows(seed: int) -> None:
    x, y = drawn(seed)
    rng = np.random.default_rng(seed)
    fit = Fit(rng.standard_normal((1, CHANNELS, COLUMNS)), rng.standard_normal((1, CHANNELS)))
    expected = np.square(x @ fit.rows[0].T + fit.bias[0] - y).sum(axis=0)
    np.testing.assert_allclose(fit.error(sums_of(x, y))[0], expected, rtol=1e-9)
    spread = np.square(y - y.mean(axis=0)).sum()
    assert fit.relative_error(sums_of(x, y)) == pytest.approx(expected.sum() / spread)
    np.testing.assert_allclose(variation(sums_of(x, y)).sum(), spread)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shifts", [True, False])
def test_all_of_a_weight(seed: int, shifts: bool) -> None:
    x, y = drawn(seed)
    ones = np.ones((ROWS, 1)) if shifts else np.zeros((ROWS, 0))
    expected = np.linalg.lstsq(np.hstack([x, ones]), y, rcond=None)[0].T
    found = Problem.of(sums_of(x, y), zeros(), shifts=shifts).dense(1e-12)
    np.testing.assert_allclose(found.rows[0], expected[:, :COLUMNS], atol=1e-8)
    np.testing.assert_allclose(found.bias[0], expected[:, COLUMNS] if shifts else 0, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shifts", [True, False])
def test_a_weight_on_a_mask(seed: int, shifts: bool) -> None:
    """Each row is the least squares solution with the columns that it has."""
    x, y = drawn(seed)
    mask = np.random.default_rng(seed).random((1, CHANNELS, COLUMNS)) < 0.5
    found = Problem.of(sums_of(x, y), zeros(), shifts=shifts).masked(mask, 1e-9)
    assert not found.rows[~mask].any()
    ones = np.ones((ROWS, 1)) if shifts else np.zeros((ROWS, 0))
    for channel in range(CHANNELS):
        rows = np.hstack([x[:, mask[0, channel]], ones])
        expected = rows @ np.linalg.lstsq(rows, y[:, channel], rcond=None)[0]
        given = x @ found.rows[0, channel] + found.bias[0, channel]
        np.testing.assert_allclose(given, expected, atol=1e-6)


def test_a_ridge_pulls_to_the_weight_that_there_was() -> None:
    x, y = drawn(0)
    rng = np.random.default_rng(1)
    start = Fit(rng.standard_normal((1, CHANNELS, COLUMNS)), np.zeros((1, CHANNELS)))
    problem = Problem.of(sums_of(x, y), start, shifts=True)
    mask = np.ones(start.rows.shape, bool)
    for fit in (problem.dense(1e9), problem.masked(mask, 1e9)):
        np.testing.assert_allclose(fit.rows, start.rows, atol=1e-7)
        np.testing.assert_allclose(fit.bias[0], y.mean(0) - fit.rows[0] @ x.mean(0))


def test_inputs_that_never_vary_leave_the_weight() -> None:
    x, y = np.zeros((ROWS, COLUMNS)), drawn(0)[1]
    start = Fit(np.ones((1, CHANNELS, COLUMNS)), np.zeros((1, CHANNELS)))
    problem = Problem.of(sums_of(x, y), start, shifts=True)
    for fit in (problem.dense(1e-2), problem.masked(np.ones(start.rows.shape, bool), 1e-2)):
        np.testing.assert_allclose(fit.rows, start.rows)
        np.testing.assert_allclose(fit.bias[0], y.mean(0))


def test_groups_are_solved_apart() -> None:
    pairs = [drawn(seed) for seed in range(2)]
    single = [sums_of(*pair) for pair in pairs]
    both = Sums(
        *(np.concatenate([getattr(one, name) for one in single]) for name in ("xx", "xy", "x", "y", "yy")),
        ROWS,
    )
    start = Fit(np.zeros((2, CHANNELS, COLUMNS)), np.zeros((2, CHANNELS)))
    mask = np.random.default_rng(0).random(start.rows.shape) < 0.5
    found = Problem.of(both, start, shifts=True).masked(mask, 1e-3)
    for group, sums in enumerate(single):
        alone = Problem.of(sums, zeros(), shifts=True).masked(mask[group : group + 1], 1e-3)
        np.testing.assert_allclose(found.rows[group], alone.rows[0], rtol=1e-9, atol=1e-9)
