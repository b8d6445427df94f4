"""Rounding with error feedback: never worse than to nearest, much better on correlated inputs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_passes.quantize.rounding import corrected, feedback, output_error
from graphopt_passes.quantize.weights import limit, rounded

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)


def correlated(rng: np.random.Generator, columns: int, samples: int, mean: float = 0.0) -> np.ndarray:
    """Inputs [samples, columns] that a few directions explain, of uneven size, as activations are."""
    directions = rng.standard_normal((max(columns // 8, 1), columns)) * rng.lognormal(0, 1, columns)
    x = rng.standard_normal((samples, len(directions))) @ directions
    return np.asarray(x + 0.1 * rng.standard_normal((samples, columns)) + mean)


def nearest_error(w: np.ndarray, scales: np.ndarray, moments: np.ndarray, bits: int) -> np.ndarray:
    most = limit(bits)
    integers = np.clip(np.rint(w.astype(np.float64) / scales[:, None]), -most, most)
    return output_error(integers * scales[:, None] - w, moments)


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from([7, 8]), st.integers(1, 3))
def test_no_channel_is_worse_than_rounded_to_nearest(seed: int, columns: int, bits: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.standard_t(3, (4 * groups, columns)).astype(np.float32)
    xs = [correlated(rng, columns, int(rng.integers(1, 400)), rng.standard_normal()) for _ in range(groups)]
    moments = np.stack([x.T @ x for x in xs])
    scales = rounded(w, 0, bits).scales * np.float32(rng.choice([0.5, 1.0]))  # half the range saturates
    data = feedback(w, scales, moments, bits=bits)
    assert data.dtype == np.int8 and np.abs(data.astype(int)).max() <= limit(bits)
    after = output_error(data * scales[:, None].astype(np.float64) - w, moments)
    before = nearest_error(w, scales, moments, bits)
    assert (after <= before * (1 + 1e-9)).all()


def test_correlated_inputs_gain_much() -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_normal((32, 512)).astype(np.float32)
    seen, unseen = correlated(rng, 512, 4000).reshape(2, 2000, 512)
    scales = rounded(w, 0).scales
    delta = feedback(w, scales, seen.T @ seen) * scales[:, None].astype(np.float64) - w
    held_out = unseen.T @ unseen
    assert output_error(delta, held_out).sum() < 0.02 * nearest_error(w, scales, held_out, 8).sum()


def test_independent_inputs_are_rounded_to_nearest() -> None:
    w = np.random.default_rng(6).standard_normal((8, 40)).astype(np.float32)
    made = rounded(w, 0)
    np.testing.assert_array_equal(feedback(w, made.scales, np.diag(np.arange(1.0, 41.0))), made.data)
    np.testing.assert_array_equal(feedback(w, made.scales, np.zeros((40, 40))), made.data)


def test_near_the_optimum_of_all_roundings() -> None:
    rng = np.random.default_rng(7)
    gained, possible = 0.0, 0.0
    for _ in range(20):
        w = rng.uniform(-3, 3, (1, 8))
        x = correlated(rng, 8, 50)
        moments = x.T @ x
        choices = np.floor(w) + np.array(list(product((0, 1), repeat=8)))
        best = output_error(choices - w, moments[None]).min()
        base = nearest_error(w, np.ones(1), moments, 8)[0]
        gained += np.log(base / output_error(feedback(w, np.ones(1), moments) - w, moments)[0])
        possible += np.log(base / best)
    assert gained > 0.6 * possible > 1


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    w = rng.standard_normal((5, 150))
    x = correlated(rng, 150, 500)
    scales = rounded(w, 0).scales
    whole = feedback(w, scales, x.T @ x)
    monkeypatch.setattr("graphopt_passes.quantize.rounding._BLOCK", 1000)
    np.testing.assert_array_equal(feedback(w, scales, x.T @ x), whole)


def test_it_is_gptq() -> None:
    """The integers of the algorithm as Frantar et al. write it, with the Cholesky factor of the inverse."""
    rng = np.random.default_rng(9)
    w = rng.uniform(-4, 4, (6, 30))
    x = correlated(rng, 30, 200)
    moments = x.T @ x
    order = np.argsort(-np.diag(moments))
    damped = (moments + 0.01 * np.trace(moments) / 30 * np.eye(30))[np.ix_(order, order)]
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest, integers = w[:, order], np.empty_like(w)
    for k, column in enumerate(order):
        integers[:, column] = np.rint(rest[:, k])
        wrong = (rest[:, k] - integers[:, column]) / factor[k, k]
        rest[:, k:] -= wrong[:, None] * factor[k, k:]
    np.testing.assert_array_equal(feedback(w, np.ones(1), moments), integers)


def test_groups_are_rounded_alone() -> None:
    rng = np.random.default_rng(10)
    w = rng.standard_normal((6, 18))
    xs = [correlated(rng, 18, 100) for _ in range(3)]
    moments, scales = np.stack([x.T @ x for x in xs]), rounded(w, 0).scales
    together = feedback(w, scales, moments)
    for group in range(3):
        part = slice(2 * group, 2 * group + 2)
        np.testing.assert_array_equal(together[part], feedback(w[part], scales[part], moments[group]))


def test_a_corrected_weight_makes_up_for_its_input() -> None:
    rng = np.random.default_rng(11)
    w = rng.standard_normal((8, 24)).astype(np.float32)
    x = correlated(rng, 24, 2000)
    wrong = x + 0.2 * x[:, ::-1] + 0.3 * rng.standard_normal(x.shape)
    better = corrected(w, wrong.T @ wrong, x.T @ wrong, damp=1e-6)
    before, after = (np.square(wrong @ m.T - x @ w.T).sum() for m in (w, better))
    exact = np.linalg.lstsq(wrong, x @ w.T, rcond=None)[0].T
    assert after < 0.5 * before
    np.testing.assert_allclose(better, exact, rtol=1e-2, atol=1e-2)


def test_an_input_without_error_leaves_the_weight() -> None:
    rng = np.random.default_rng(12)
    w = rng.standard_normal((4, 10)).astype(np.float32)
    x = rng.standard_normal((3, 10))  # fewer samples than columns: only the ridge decides the rest
    np.testing.assert_allclose(corrected(w, x.T @ x, x.T @ x), w, atol=1e-6)


def test_the_output_error_is_what_samples_say() -> None:
    rng = np.random.default_rng(13)
    delta, x = rng.standard_normal((6, 9)), rng.standard_normal((2, 50, 9))
    moments = np.stack([one.T @ one for one in x])
    expected = [np.square(x[channel // 3] @ delta[channel]).sum() for channel in range(6)]
    np.testing.assert_allclose(output_error(delta, moments), expected)


def test_moments_that_do_not_fit_are_refused() -> None:
    w, one = np.ones((4, 3)), np.ones(4)
    with pytest.raises(ValueError, match=r"moments of shape \(2, 2\) for 4 channels of 3 columns"):
        feedback(w, one, np.eye(2))
    with pytest.raises(ValueError, match="moments of shape"):
        feedback(w, one, np.ones((3, 3, 3)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        feedback(w, one, np.full((3, 3), np.nan))


@pytest.mark.parametrize("groups", [1, 2])
def test_what_was_pruned_stays_zero(groups: int) -> None:
    """Zeros take no error of others, and the others still make up for each other."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((groups, 500, 24)) @ rng.standard_normal((24, 24))
    moments = x.swapaxes(1, 2) @ x
    w = rng.standard_normal((8, 24)) * (rng.random((8, 24)) < 0.5)
    scales = np.abs(w).max(axis=1) / 7
    found = feedback(w, scales, moments, bits=4)
    assert not found[w == 0].any()
    nearest = np.clip(np.rint(w / scales[:, None]), -7, 7)
    errors = [output_error(one * scales[:, None] - w, moments).sum() for one in (found, nearest)]
    assert errors[0] < errors[1]
