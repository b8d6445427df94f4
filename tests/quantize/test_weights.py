"""Weights as integers: on the grid, nearest, clipped where that lowers the error, biases in range."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_passes.quantize.scheme import IntegerWeight
from graphopt_passes.quantize.weights import (
    clipped,
    from_rows,
    limit,
    on_scales,
    raise_scales,
    rounded,
    rows,
    widest,
)

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
LAYOUTS = [
    ((6, 3, 3, 3), 0),
    ((5, 7), 1),
    ((4, 9), 0),
    ((2, 3, 6), 2),
    ((8, 1, 5), 0),
    ((3, 0), 0),
    ((7,), 0),
]
DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: rng.standard_t(2, shape),
    "scattered": lambda rng, shape: rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 30, shape),
    "few": lambda rng, shape: rng.integers(-1, 2, shape).astype(float),
}


@st.composite
def weights(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    shape, axis = draw(st.sampled_from(LAYOUTS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = DRAWS[draw(st.sampled_from(sorted(DRAWS)))](rng, shape)
    return w.astype(draw(st.sampled_from([np.float32, np.float64]))), axis


def weighted_error(made: IntegerWeight, w: np.ndarray, energy: np.ndarray | float = 1.0) -> np.ndarray:
    """Per channel, in units of the largest weight."""
    wrong = rows(made.real(), made.axis).astype(np.float64) - rows(w, made.axis)
    return np.asarray((energy * (wrong / np.maximum(np.abs(w).max(initial=0), 1e-30)) ** 2).sum(axis=1))


@SETTINGS
@given(weights(), st.sampled_from([7, 8]))
def test_rounded_is_nearest_and_within_half_a_step(case: tuple[np.ndarray, int], bits: int) -> None:
    w, axis = case
    made = rounded(w, axis, bits)
    assert made.data.shape == w.shape and made.data.dtype == np.int8
    assert made.scales.dtype == np.float32 and made.scales.shape == (w.shape[axis],)
    assert (made.scales > 0).all()
    assert np.abs(made.data.astype(int)).max(initial=0) <= limit(bits)
    wrong = np.abs(rows(made.real(), axis) - rows(w, axis))
    assert (wrong <= made.scales[:, None] * (0.5 + 1e-4)).all()


@SETTINGS
@given(weights(), st.sampled_from([7, 8]), st.booleans(), st.integers(0, 99))
def test_clipping_never_raises_the_weighted_error(
    case: tuple[np.ndarray, int], bits: int, uneven: bool, seed: int
) -> None:
    w, axis = case
    columns = rows(w, axis).shape[1]
    energy = np.random.default_rng(seed).pareto(1, columns) if uneven else np.ones(columns)
    made = clipped(w, axis, energy if uneven else None, bits)
    counted = energy / (energy.mean() if columns else 1.0) + 1e-4
    before, after = (weighted_error(m, w, counted) for m in (rounded(w, axis, bits), made))
    assert (after <= before * (1 + 1e-3) + 1e-15).all()
    assert np.abs(made.data.astype(int)).max(initial=0) <= limit(bits)


def test_clipping_ignores_an_outlier_that_meets_no_energy() -> None:
    w = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    w[:, 5] = 30.0
    energy = np.ones(64)
    energy[5] = 0.0
    live = np.arange(64) != 5
    before, after, even = rounded(w, 0), clipped(w, 0, energy), clipped(w, 0)
    errors = [(((m.real() - w)[:, live]) ** 2).sum(axis=1) for m in (before, after)]
    assert (errors[1] < errors[0] / 3).all()
    assert (even.scales > 0.97 * before.scales).all()  # with energy, the outlier is worth its range


@pytest.mark.parametrize(("columns", "bits", "least"), [(9, 8, 0.6), (64, 8, 0.9), (4608, 7, 0.95)])
def test_fitted_scales_pay(columns: int, bits: int, least: float) -> None:
    w = np.random.default_rng(1).standard_t(3, (64, columns)).astype(np.float32)
    ratio = weighted_error(clipped(w, 0, bits=bits), w) / weighted_error(rounded(w, 0, bits), w)
    assert ratio.mean() < least


def test_each_group_has_its_own_energy() -> None:
    rng = np.random.default_rng(2)
    w = rng.standard_t(2, (6, 2, 3, 3)).astype(np.float32)
    energy = rng.pareto(0.5, (3, 18))
    together = clipped(w, 0, energy)
    for group in range(3):
        alone = clipped(w[2 * group : 2 * group + 2], 0, energy[group])
        np.testing.assert_array_equal(together.data[2 * group : 2 * group + 2], alone.data)


def test_energy_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"energy of shape \(3,\) for 4 channels of 5 columns"):
        clipped(np.ones((4, 5)), 0, np.ones(3))
    with pytest.raises(ValueError, match="energy of shape"):
        clipped(np.ones((4, 5)), 0, np.ones((3, 5)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(value: float) -> None:
    w = np.ones((3, 4), np.float32)
    w[1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        rounded(w, 0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        clipped(w, 0)


def test_channels_of_zeros_take_the_scale_of_the_others() -> None:
    w = np.array([[1.0, -2.0], [0, 0], [4.0, 0]], np.float32)
    np.testing.assert_array_equal(widest(w, 0), np.array([2, 4, 4], np.float32) / np.float32(127))
    np.testing.assert_array_equal(widest(np.zeros((3, 2), np.float32), 0), np.ones(3))
    assert (rounded(w, 0).data[1] == 0).all() and (clipped(w, 0).data[1] == 0).all()


@SETTINGS
@given(weights())
def test_the_layout_does_not_matter(case: tuple[np.ndarray, int]) -> None:
    w, axis = case
    flat = rounded(rows(w, axis), 0)
    made = rounded(w, axis)
    np.testing.assert_array_equal(made.data, from_rows(flat.data, w, axis))
    np.testing.assert_array_equal(made.scales, flat.scales)
    assert from_rows(rows(w, axis), w, axis).shape == w.shape
    np.testing.assert_array_equal(from_rows(rows(w, axis), w, axis), w)


def test_one_scale_for_the_whole_tensor() -> None:
    w = np.random.default_rng(3).standard_normal((5, 7)).astype(np.float16)
    made = on_scales(w, np.array([0.02], np.float32), 1)
    assert made.scales.shape == (1,)
    np.testing.assert_array_equal(
        made.data, np.clip(np.rint(w.astype(np.float32) / np.float32(0.02)), -127, 127)
    )


@SETTINGS
@given(
    st.lists(st.floats(1e-30, 1e3), min_size=1, max_size=5),
    st.floats(1e-20, 1e4),
    st.floats(-1e6, 1e6),
    st.booleans(),
)
def test_raised_scales_keep_the_bias_in_range(
    given_scales: list[float], input_scale: float, largest: float, one: bool
) -> None:
    scales = np.array(given_scales, np.float32)
    bias = np.linspace(largest, 0, 3 if one and scales.size == 1 else scales.size)
    raised = raise_scales(scales, input_scale, bias)
    assert raised.dtype == np.float32 and raised.shape == scales.shape
    assert (raised >= scales).all()
    step = np.float32(input_scale) * raised
    assert (step > 1.2e-38).all(), "the step of the accumulator is a subnormal number"
    assert (np.abs(np.rint(bias / step.astype(np.float64))) <= 2**30 * (1 + 1e-6)).all()


def test_scales_that_need_not_be_raised_stay() -> None:
    scales = np.array([0.5, 1e-3], np.float32)
    np.testing.assert_array_equal(raise_scales(scales, 0.1, np.array([3.0, -1.0])), scales)
    np.testing.assert_array_equal(raise_scales(scales, 0.1, None), scales)
    raised = raise_scales(scales, 1e-9, np.array([0.1, 100.0]))
    np.testing.assert_array_equal(raised, np.array([0.5, 100 / 1e-9 / 2**30], np.float32))


def test_a_large_weight_is_worked_on_in_blocks() -> None:
    w = np.random.default_rng(4).standard_normal((4096, 2048)).astype(np.float32)  # 32 MiB
    for call in (rounded, clipped):
        tracemalloc.start()
        call(w, 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < w.size + (16 << 20), f"{call.__name__} took {peak:,} bytes besides the weight"
