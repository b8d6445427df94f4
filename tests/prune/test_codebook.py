"""The values that the numbers of a weight share: near the best that can be, and zero where it has zeros."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.vq import kmeans2

from graphopt_passes.compress.codebook import Codebook, Histogram


def histogram(numbers: np.ndarray, energies: np.ndarray | None = None) -> Histogram:
    weights = np.ones(1) if energies is None else energies
    return Histogram.of([(numbers, weights)], float(numbers.min()), float(numbers.max()))


def error(numbers: np.ndarray, values: np.ndarray, energies: np.ndarray | None = None) -> float:
    nearest = np.abs(numbers.reshape(-1, 1) - values).min(axis=1) ** 2
    return float(np.average(nearest, weights=None if energies is None else energies.reshape(-1)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy", "standard_exponential"])
def test_no_restart_of_k_means_is_much_better(draw: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = np.clip(getattr(rng, draw)(4000), -30, 30).astype(np.float32)
    found = Codebook.of(histogram(numbers), 16)
    best = min(
        error(numbers, kmeans2(numbers.astype(float), 16, minit="++", seed=restart)[0])
        for restart in range(5)
    )
    assert len(found.values) <= 16
    assert error(numbers, found.values) < 1.15 * best


def test_values_serve_the_numbers_with_energy() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((64, 64)).astype(np.float32)
    energies = np.where(np.arange(64) < 8, 100.0, 0.01)[None, :] * np.ones((64, 1))
    numbers[:, :8] *= 0.1
    plain, weighted = Codebook.of(histogram(numbers), 16), Codebook.of(histogram(numbers, energies), 16)
    assert error(numbers, weighted.values, energies) < 0.5 * error(numbers, plain.values, energies)


def test_zeros_stay_zeros() -> None:
    numbers = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    numbers[::2] = 0
    found = Codebook.of(histogram(numbers), 16)
    restored = found.values[found.indices(numbers)]
    assert (restored[::2] == 0).all()


def test_few_numbers_are_exact() -> None:
    numbers = np.array([1.5, -2.0, 1.5, 7.0], np.float32)
    found = Codebook.of(histogram(numbers), 16)
    np.testing.assert_allclose(found.values[found.indices(numbers)], numbers, rtol=2e-7)


def test_one_number_alone() -> None:
    found = Codebook.of(histogram(np.full(9, 0.25, np.float32)), 16)
    np.testing.assert_array_equal(found.values, [0.25])
