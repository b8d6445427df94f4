"""The mean comes back, from outputs or from inputs; int32 biases are right to half a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_passes.quantize.bias_correction import corrected_bias, integer_bias, mean_shift
from graphopt_passes.quantize.weights import raise_scales, rounded, rows

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


def relu_layer(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs behind a Relu (their mean is not 0), a weight, and both as a coarse grid leaves them."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((4000, 20)) + rng.standard_normal(20), 0)
    w = rng.standard_normal((6, 20)).astype(np.float32)
    return x, w, np.floor(x * 4) / 4, rounded(w, 0, bits=3).real()


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_mean_comes_back(seed: int, with_bias: bool) -> None:
    x, w, coarse, made = relu_layer(seed)
    bias = np.random.default_rng(seed).standard_normal(6).astype(np.float32) if with_bias else None
    old = 0.0 if bias is None else bias
    right, wrong = x @ w.T + old, coarse @ made.T + old
    new = corrected_bias(bias, right.mean(axis=0), wrong.mean(axis=0))
    assert new.dtype == np.float32
    fixed = coarse @ made.T + new
    np.testing.assert_allclose(fixed.mean(axis=0), right.mean(axis=0), atol=1e-5)
    assert np.square(fixed - right).mean() < np.square(wrong - right).mean()


@SETTINGS
@given(st.integers(0, 2**32 - 1))
def test_means_of_inputs_say_the_same(seed: int) -> None:
    x, w, coarse, made = relu_layer(seed)
    measured = (coarse @ made.T - x @ w.T).mean(axis=0)
    np.testing.assert_allclose(mean_shift(w, made, x.mean(axis=0), coarse.mean(axis=0)), measured, atol=1e-9)
    same_input = (x @ made.T - x @ w.T).mean(axis=0)
    np.testing.assert_allclose(mean_shift(w, made, x.mean(axis=0)), same_input, atol=1e-9)


def test_groups_have_their_own_means() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 2, 3, 3)).astype(np.float32)
    made, means = rounded(w, 0, bits=4).real(), rng.standard_normal((3, 18))
    together = mean_shift(rows(w, 0), rows(made, 0), means)
    for group in range(3):
        part = slice(2 * group, 2 * group + 2)
        alone = mean_shift(rows(w[part], 0), rows(made[part], 0), means[group])
        np.testing.assert_allclose(together[part], alone)


def test_a_mean_that_is_not_finite_corrects_nothing() -> None:
    found = corrected_bias(np.array([1.0, 2, 3]), np.array([0.5, np.inf, 0]), np.array([0.0, 0, np.nan]))
    np.testing.assert_array_equal(found, np.array([1.5, 2, 3], np.float32))


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 10), st.booleans())
def test_integer_biases_are_within_half_a_step(seed: int, input_scale: float, one: bool) -> None:
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(5) * 10.0 ** rng.integers(-6, 6, 5)
    scales = (10.0 ** rng.uniform(-8, 0, 1 if one else 5)).astype(np.float32)
    raised = raise_scales(scales, input_scale, bias)
    found = integer_bias(bias, input_scale, raised)
    assert found.dtype == np.int32 and found.shape == bias.shape
    steps = np.float64(np.float32(input_scale)) * raised
    assert (np.abs(found * steps - bias) <= steps * 0.5001).all()


def test_a_bias_that_exceeds_int32_is_refused() -> None:
    with pytest.raises(ValueError, match="a bias of 1e\\+06 in steps of 1e-06 exceeds int32"):
        integer_bias(np.array([1.0, -1e6]), 1e-3, np.array([1e-3], np.float32))
    with pytest.raises(ValueError, match="exceeds int32"):
        integer_bias(np.array([np.nan]), 1e-3, np.array([1e-3], np.float32))
