"""Which weights go: patterns hold, and the methods that look at the inputs lose less than the size alone."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.runtime.pairs import Sums
from graphopt_passes.refit.solve import Fit, Problem
from graphopt_passes.sparsify import masks
from graphopt_passes.sparsify.patterns import Anywhere, Groups, Pattern, along_channels

GROUPS, CHANNELS, COLUMNS = 2, 24, 160  # more columns than one block of 128
PATTERNS: list[Pattern] = [Anywhere(0.5), Anywhere(0.2), Groups(2, 4), Groups(1, 4)]


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, Problem]:
    """A weight, the damped moments of correlated inputs, and the layer's least squares."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((GROUPS, COLUMNS, COLUMNS)) * rng.exponential(1.0, (GROUPS, 1, COLUMNS)) ** 2
    x = np.maximum(rng.standard_normal((GROUPS, 600, COLUMNS)) @ mixing, 0)
    w = rng.standard_normal((GROUPS, CHANNELS, COLUMNS))
    sums = Sums.zeros(GROUPS, COLUMNS, CHANNELS)
    sums.take(x, x @ w.swapaxes(1, 2))
    problem = Problem.of(sums, Fit(w, np.zeros((GROUPS, CHANNELS))), shifts=True)
    return w, problem.damped(1e-2)[0], problem


def all_masks(w: np.ndarray, h: np.ndarray, pattern: Pattern) -> dict[str, np.ndarray]:
    return {
        "magnitude": masks.magnitude(w, pattern),
        "energy": masks.energy(w, h, pattern),
        "one by one": masks.one_by_one(w, h, pattern),
        "alternating": next(masks.alternating(w, h, [pattern])),
    }


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns_hold(pattern: Pattern) -> None:
    w, h, _ = drawn(0)
    for name, mask in all_masks(w, h, pattern).items():
        assert mask.shape == w.shape
        assert mask.mean() == pytest.approx(pattern.density, abs=0.01), name
        if isinstance(pattern, Groups):
            kept = mask.reshape(GROUPS, CHANNELS, -1, pattern.size).sum(axis=3)
            assert (kept == pattern.kept).all(), name


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_inputs_tell_what_may_go(pattern: Pattern, seed: int) -> None:
    """tr(ΔW·H·ΔWᵀ) once what is left is fitted."""
    w, h, problem = drawn(seed)
    lost = {}
    for name, mask in all_masks(w, h, pattern).items():
        delta = problem.masked(mask, 1e-2).rows - w
        lost[name] = float(np.einsum("gck,gck->", delta @ problem.h, delta))
    assert lost["alternating"] < lost["energy"] < lost["magnitude"]
    assert lost["alternating"] < lost["one by one"] < lost["magnitude"]


def test_a_larger_weight_is_not_removed_before_a_smaller_one() -> None:
    w = np.random.default_rng(0).standard_normal((1, 7, 11))
    kept = masks.magnitude(w, Anywhere(0.3))
    assert kept.sum() == round(0.3 * 77)
    assert np.abs(w[kept]).min() > np.abs(w[~kept]).max()


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_nothing_and_everything(density: float) -> None:
    assert masks.magnitude(np.ones((1, 3, 4)), Anywhere(density)).mean() == density


def test_inputs_that_are_always_zero_are_removed_first() -> None:
    w, h, _ = drawn(0)
    h[:, :, 5] = h[:, 5] = 0.0
    h[:, 5, 5] = 1e-9
    for name, mask in all_masks(w, h, Anywhere(0.5)).items():
        assert name == "magnitude" or not mask[:, :, 5].any(), name


def test_groups_of_a_conv_run_along_its_channels() -> None:
    weight = np.arange(8 * 3 * 3).reshape(1, 8, 3, 3)
    seen = weight.reshape(1, -1)[:, along_channels(72, 9)].reshape(9, 8)
    np.testing.assert_array_equal(seen, weight[0].reshape(8, 9).T)
