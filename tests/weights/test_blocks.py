"""Blocks of integers: grids hold what they should, clips and fitting only lower the error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_passes.quantize.rounding import damped, output_error
from graphopt_passes.weights.blocks import (
    FINE_CLIPS,
    Blocked,
    Inputs,
    blocked,
    grid_of,
    levels,
    nearest,
    on_grid,
    prefers_zeros,
)
from graphopt_passes.weights.fitting import fitted
from graphopt_passes.weights.forms import pack, unpack
from graphopt_passes.weights.half_quadratic import half_quadratic

RNG = np.random.default_rng(0)
SHAPES = [(6, 64), (5, 70), (1, 16), (300, 96)]


def heavy(*shape: int) -> np.ndarray:
    return (RNG.standard_t(4, shape) * 0.05).astype(np.float32)


def error(w: np.ndarray, found: Blocked) -> float:
    return float(np.square(found.real().astype(np.float64) - w).sum())


def by_hand(w: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Blocks from their least to their largest number, one after the other, in float64."""
    result = np.empty(w.shape)
    for row, numbers in enumerate(w.astype(np.float64)):
        for start in range(0, len(numbers), block):
            part = numbers[start : start + block]
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            scale = (high - low) / levels(bits)
            zero = round(-low / scale)
            whole = np.clip(np.rint(part / scale) + zero, 0, levels(bits))
            result[row, start : start + block] = (whole - zero) * scale
    return result


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_to_nearest_is_what_it_is_by_hand(shape: tuple[int, int], bits: int) -> None:
    w = heavy(*shape)
    grid = grid_of(w, bits, 32, symmetric=False, clips=(1.0,))
    np.testing.assert_allclose(on_grid(w, grid).real(), by_hand(w, bits, 32), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_number_is_further_from_its_weight_than_half_a_step(
    shape: tuple[int, int], symmetric: bool
) -> None:
    w = heavy(*shape)
    grid = grid_of(w, 4, 32, symmetric=symmetric, clips=(1.0,))
    steps, _ = grid.expanded(shape[1])
    # A whole zero point moves the ends of a block by at most half a step.
    assert (np.abs(on_grid(w, grid).real() - w) <= steps * (0.5 + (0 if symmetric else 0.5)) + 1e-6).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_more_clips_never_raise_the_error(bits: int) -> None:
    w = heavy(64, 128)
    some = (1.0, 0.91, 0.82)
    errors = [error(w, nearest(w, bits, 32, clips, symmetric=False)) for clips in ((1.0,), some, FINE_CLIPS)]
    assert errors[1] <= errors[0] and errors[2] <= errors[1] * (1 + 1e-6) + 1e-9


def test_energy_moves_the_grid_to_the_columns_that_count() -> None:
    w, energy = heavy(64, 32), np.ones(32)
    energy[:4] = 1e4
    plain, weighted = (
        on_grid(w, grid_of(w, 4, 32, symmetric=False, inputs=x, clips=FINE_CLIPS))
        for x in (None, Inputs(energy, 0 * energy))
    )
    lost = [float((np.square(one.real() - w) * energy).sum()) for one in (plain, weighted)]
    assert lost[1] < lost[0]


def test_zero_points_are_for_blocks_that_lie_on_one_side() -> None:
    assert prefers_zeros(np.abs(heavy(64, 64)), 4, 32)
    exact = np.tile(np.arange(-8, 8, dtype=np.float32), (8, 4))
    assert not prefers_zeros(exact, 4, 32)
    assert nearest(exact, 4, 32).grid.symmetric
    np.testing.assert_allclose(nearest(exact, 4, 32).real(), exact, atol=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_no_grid_holds_is_refused(wrong: float) -> None:
    w = heavy(4, 32)
    w[1, 2] = wrong
    with pytest.raises(ValueError, match="NaN or infinity"):
        nearest(w, 4, 32)


def test_zeros_stay_zeros() -> None:
    found = nearest(np.zeros((4, 64), np.float32), 4, 32)
    assert not found.real().any()


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_packing_and_unpacking_are_inverse(count: int) -> None:
    numbers = RNG.integers(0, 16, (3, count), dtype=np.uint8)
    packed = pack(numbers, 4)
    assert packed.shape == (3, -(-count // 2))
    np.testing.assert_array_equal(unpack(packed, 4, count), numbers)
    assert packed[0, 0] & 15 == numbers[0, 0]  # the first number lies in the lower half


def moments(columns: int, rows: int = 400) -> np.ndarray:
    mixing = RNG.standard_normal((columns, columns)) * RNG.random(columns) ** 2
    x = RNG.standard_normal((rows, columns)) @ mixing + 0.1 * RNG.standard_normal((rows, columns))
    return x.T @ x


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "block"), [((24, 64), 32), ((16, 80), 32), ((8, 48), 16)])
def test_fitting_lowers_the_error_of_the_output(shape: tuple[int, int], block: int, symmetric: bool) -> None:
    w, h = heavy(*shape), moments(shape[1])
    plain = nearest(w, 4, block, FINE_CLIPS, symmetric=symmetric)
    found = fitted(w, h, 4, block, symmetric=symmetric)
    before, after = (output_error(one.real() - w, h).sum() for one in (plain, found))
    assert after < 0.6 * before


def test_no_sweep_raises_the_error() -> None:
    w, h = heavy(32, 96), moments(96)
    known = damped(h, 0.01)
    errors = [
        output_error(fitted(w, h, 4, 32, symmetric=False, sweeps=count).real() - w, known).sum()
        for count in range(6)
    ]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.97 * errors[0]


def test_where_inputs_are_independent_fitting_is_rounding_to_nearest() -> None:
    w = heavy(16, 32)
    found = fitted(w, np.eye(32), 4, 32, symmetric=False, sweeps=0)
    grid = grid_of(w, 4, 32, symmetric=False, inputs=Inputs(np.ones(32), np.zeros(32)), clips=FINE_CLIPS)
    np.testing.assert_array_equal(found.integers, on_grid(w, grid).integers)


def test_integers_stay_within_their_levels() -> None:
    w, h = heavy(16, 64) * 100, moments(64)
    found = fitted(w, h, 4, 32, symmetric=False)
    assert found.integers.max() <= 15 and found.grid.scales.min() > 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_half_quadratic_lowers_the_norm_that_it_is_for(symmetric: bool) -> None:
    w = heavy(64, 128)
    plain = on_grid(w, grid_of(w, 4, 32, symmetric=symmetric, clips=(1.0,)))
    found = half_quadratic(w, 4, 32, symmetric=symmetric)
    lost = [float((np.abs(one.real() - w) ** 0.7).sum()) for one in (plain, found)]
    assert lost[1] < lost[0]
    assert not symmetric or found.grid.symmetric


def test_the_last_block_of_a_row_may_be_shorter() -> None:
    assert blocked(heavy(3, 70), 32).shape == (3, 3, 32)
    w = heavy(3, 70)
    assert nearest(w, 8, 32).real().shape == w.shape


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_was_pruned_stays_zero(symmetric: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 64)) @ rng.standard_normal((64, 64))
    w = (rng.standard_normal((8, 64)) * (rng.random((8, 64)) < 0.5)).astype(np.float32)
    found = fitted(w, x.T @ x, 4, 32, symmetric=symmetric).real()
    assert not found[w == 0].any()
