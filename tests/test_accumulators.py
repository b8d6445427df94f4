"""Accumulators: what they gather equals what numpy or ONNX Runtime computes from all arrays at once."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.accumulators import Bins, Extent, Histogram
from graphopt.runtime.grid_errors import GridErrors, Steps
from graphopt.runtime.means import Mean
from graphopt.runtime.moments import Moments, Patches
from tests.support import compute, parse

SETTINGS = settings(max_examples=80, deadline=None, derandomize=True)
GRIDS = (Steps(0.05, 128, 0, 255), Steps(0.01, 0, -128, 127), Steps(0.3, 0, 0, 127))
KINDS = [Extent(), Extent(1), Histogram(64), Mean(1), GridErrors(GRIDS, 1), GridErrors(GRIDS), Moments(5)]
ALL = lambda kind: type(kind).__name__ + str(getattr(kind, "axis", ""))  # noqa: E731


def _arrays(seed: int, count: int = 5) -> list[np.ndarray]:
    """Arrays [n, 3, 5] whose magnitudes grow and shrink by factors of up to a million."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.uniform(-3, 3, count)
    arrays = [rng.standard_t(2, (rng.integers(1, 40), 3, 5)) * scale for scale in scales]
    return [np.where(rng.random(x.shape) < 0.2, 0, x).astype(np.float32) for x in arrays]


def _fed(kind, arrays):
    """The accumulator as it comes back from the worker."""
    accumulator = kind.start()
    for array in arrays:
        accumulator.add(array)
    return pickle.loads(pickle.dumps(accumulator))


def _same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


@pytest.mark.parametrize("kind", KINDS, ids=ALL)
def test_same_arrays_give_the_same_bits(kind):
    assert _same(_fed(kind, _arrays(3)), _fed(kind, _arrays(3)))


@pytest.mark.parametrize("kind", KINDS, ids=ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_number_is_refused(kind, bad):
    x = _arrays(0)[0]
    x[0, 1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        kind.start().add(x)


@pytest.mark.parametrize("kind", KINDS, ids=ALL)
def test_empty_arrays_change_nothing(kind):
    empty = np.zeros((0, 3, 5), np.float32)
    assert _fed(kind, [empty]).count == 0
    assert _same(_fed(kind, [empty, *_arrays(1)]), _fed(kind, _arrays(1))) or kind == Moments(5)


@pytest.mark.parametrize("kind", [Extent(1), Mean(1), GridErrors(GRIDS, 1)], ids=ALL)
def test_channels_must_stay_and_exist(kind):
    with pytest.raises(ValueError, match="4 channels, but had 3"):
        _fed(kind, [np.ones((2, 3)), np.ones((2, 4))])
    with pytest.raises(ValueError, match="rank 1 has no axis 1"):
        kind.start().add(np.ones(3))


@given(st.integers(0, 10**6), st.sampled_from([8, 64, 4096]))
@SETTINGS
def test_histogram_knows_every_element(seed, bins):
    arrays = _arrays(seed)
    found = _fed(Histogram(bins), arrays)
    everything = np.concatenate([x.ravel() for x in arrays]).astype(np.float64)
    nonzero = everything[everything != 0]
    lattice = np.floor(nonzero / found.width).astype(np.int64) - found.first
    np.testing.assert_array_equal(found.counts, np.bincount(lattice, minlength=bins))
    assert found.zeros == everything.size - nonzero.size and found.count == everything.size
    assert (found.low, found.high) == (min(everything.min(), 0), max(everything.max(), 0))
    # As fine as a power of two allows: with half the width the range would not fit.
    half = found.width / 2
    assert np.floor(found.high / half) - np.floor(found.low / half) >= bins
    assert np.log2(found.width) % 1 == 0


@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
@SETTINGS
def test_histogram_does_not_depend_on_order(seed, random):
    arrays = _arrays(seed)
    first = _fed(Histogram(32), arrays)
    random.shuffle(arrays)
    assert _same(first, _fed(Histogram(32), arrays))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1.0, 1e20, 3e38])
def test_histogram_of_any_magnitude(scale):
    x = (np.linspace(-1, 1, 1001) * scale).astype(np.float32)
    found = _fed(Histogram(128), [x, x[::-1]])
    assert found.counts.sum() + found.zeros == found.count == 2002
    assert found.edges[0] <= x.min() and found.edges[-1] >= x.max()


def test_histogram_of_zeros():
    found = _fed(Histogram(16), [np.zeros(7, np.float32), np.full(2, 3.0, np.float32)])
    assert (found.zeros, found.counts.sum(), found.high) == (7, 2, 3.0)
    assert _fed(Histogram(16), [np.zeros(7)]).width == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.int64, np.bool_])
def test_any_real_type(dtype):
    x = np.random.default_rng(0).integers(0, 2, (4, 3, 5)).astype(dtype)
    assert _same(_fed(Histogram(8), [x]), _fed(Histogram(8), [x.astype(np.float32)]))
    np.testing.assert_array_equal(_fed(Mean(1), [x]).mean, x.astype(float).mean(axis=(0, 2)))
    assert _fed(Extent(), [x]).high == x.max()


@given(st.integers(0, 10**6), st.sampled_from([0, 1, 2, -1, None]))
@SETTINGS
def test_extent_and_mean_by_channel(seed, axis):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((4, 3, 5)).astype(np.float32) for _ in range(3)]
    stack = np.stack(arrays)
    extent = _fed(Extent(axis), arrays)
    others = tuple(i for i in range(4) if axis is None or i != (axis % 3) + 1)
    np.testing.assert_array_equal(extent.low, np.atleast_1d(stack.min(axis=others)))
    np.testing.assert_array_equal(extent.high, np.atleast_1d(stack.max(axis=others)))
    if axis is not None:
        mean = _fed(Mean(axis), arrays)
        np.testing.assert_allclose(mean.mean, stack.mean(axis=others, dtype=np.float64), rtol=1e-12)
        squares = np.square(stack, dtype=np.float64).mean(axis=others)
        np.testing.assert_allclose(mean.second_moment, squares, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, None])
def test_grid_errors(axis):
    arrays = [x[:4].copy() for x in _arrays(9) if len(x) >= 4]
    found = _fed(GridErrors(GRIDS, axis), arrays)
    others = tuple(i for i in range(3) if axis is None or i != axis % 3)
    for grid, errors in zip(GRIDS, found.errors, strict=True):
        q = [
            np.clip(np.rint(x / np.float32(grid.scale)) + grid.zero_point, grid.least, grid.most)
            for x in arrays
        ]
        wrong = [
            (k - grid.zero_point).astype(np.float32) * np.float32(grid.scale) - x
            for k, x in zip(q, arrays, strict=True)
        ]
        expected = sum(np.square(w, dtype=np.float64).sum(axis=others) for w in wrong)
        np.testing.assert_allclose(errors, np.atleast_1d(expected), rtol=1e-12)
    energy = sum(np.square(x, dtype=np.float64).sum(axis=others) for x in arrays)
    np.testing.assert_allclose(found.energy, np.atleast_1d(energy), rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, None])
def test_grid_errors_of_a_part_stand_for_the_whole(axis):
    x = np.random.default_rng(4).standard_normal((16, 1 << 16)).astype(np.float32)
    x *= np.linspace(0, 1, 1 << 16, dtype=np.float32)  # the beginning stands for nothing
    found = _fed(GridErrors(GRIDS[:1], axis), [x, x])
    assert found.count * found.energy.size < x.size / 2
    whole = np.square(GRIDS[0].round(x) - x).sum() / x.size
    share = found.errors.sum() / (found.count * found.energy.size)
    np.testing.assert_allclose(share, whole, rtol=0.02)


CONVS = [
    ("kernel_shape=[3,3], pads=[1,1,1,1]", (6, 4, 3, 3), Patches((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
    ("strides=[2,1], pads=[0,1,2,3]", (5, 4, 3, 2), Patches((3, 2), (2, 1), (1, 1), (0, 1, 2, 3))),
    ("dilations=[2,3], group=2", (6, 2, 2, 3), Patches((2, 3), (1, 1), (2, 3), (0, 0, 0, 0), 2)),
    (
        'group=4, auto_pad="SAME_UPPER", strides=[2,3]',
        (4, 1, 3, 4),
        Patches((3, 4), (2, 3), (1, 1), "SAME_UPPER", 4),
    ),
    ('auto_pad="SAME_LOWER", strides=[2,1]', (3, 4, 2, 4), Patches((2, 4), (2, 1), (1, 1), "SAME_LOWER")),
    ("", (3, 4, 1, 1), Patches((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))),
]


@pytest.mark.parametrize(("attributes", "shape", "patches"), CONVS, ids=[a or "1x1" for a, *_ in CONVS])
def test_moments_of_a_conv(attributes, shape, patches):
    """Σ y·yᵀ of ONNX Runtime's outputs is W·(Σ x·xᵀ)·Wᵀ, in every group."""
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((2, 4, size, size + 2)).astype(np.float32) for size in (7, 10)]
    w = rng.standard_normal(shape).astype(np.float32)
    dims = ",".join(map(str, shape))
    conv = f"Conv<{attributes}>" if attributes else "Conv"
    model = parse(f"g (float[n,4,h,u] x, float[{dims}] w) => (float[a,b,c,d] y) {{ y = {conv}(x, w) }}")
    found = _fed(Moments(int(np.prod(shape[1:])), patches=patches, rows=10**6), arrays)
    outputs = [compute(model, {"x": x, "w": w})[0] for x in arrays]
    y = np.concatenate([o.transpose(1, 0, 2, 3).reshape(shape[0], -1) for o in outputs], axis=1)
    y = y.reshape(patches.groups, -1, y.shape[1]).astype(np.float64)
    rows = w.reshape(patches.groups, shape[0] // patches.groups, -1).astype(np.float64)
    np.testing.assert_allclose(
        rows @ found.products @ rows.transpose(0, 2, 1), y @ y.transpose(0, 2, 1), rtol=1e-4
    )
    np.testing.assert_allclose(
        np.einsum("gmk,gk->gm", rows, found.total), y.sum(axis=2), rtol=1e-3, atol=1e-3
    )
    assert found.count == y.shape[2]


@pytest.mark.parametrize(("axis", "shape"), [(-1, (2, 6, 5)), (0, (5, 7)), (-1, (5,)), (-1, (9, 5))])
def test_moments_of_a_product(axis, shape):
    arrays = [np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in range(3)]
    found = _fed(Moments(5, axis), arrays)
    rows = np.concatenate([np.moveaxis(x, axis, -1).reshape(-1, 5) for x in arrays]).astype(np.float64)
    exact = rows.T @ rows
    rounding = len(rows) * 2.0**-24 * np.sqrt(np.outer(np.diag(exact), np.diag(exact)))  # of sums in float32
    assert (np.abs(found.products[0] - exact) <= rounding).all()
    np.testing.assert_allclose(found.mean[0], rows.mean(axis=0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.energy[0] * found.count, np.diag(found.products[0]), rtol=1e-12)


@pytest.mark.parametrize("size", [1e25, 1e-3], ids=["squares overflow float32", "small"])
def test_moments_of_any_size(size):
    x = (size * np.random.default_rng(0).standard_normal((9, 3))).astype(np.float32)
    expected = x.astype(np.float64).T @ x.astype(np.float64)
    np.testing.assert_allclose(_fed(Moments(3), [x]).products[0], expected, rtol=1e-5, atol=1e-6 * size**2)


def test_moments_of_some_rows_stand_for_all():
    rng = np.random.default_rng(2)
    mix = rng.standard_normal((5, 5))
    arrays = [(rng.standard_normal((20000, 5)) @ mix).astype(np.float32) for _ in range(4)]
    some = _fed(Moments(5), arrays)
    assert some.count == 4 * 512
    expected = mix.T @ mix
    assert np.abs(some.products[0] / some.count - expected).max() < 0.15 * np.abs(expected).max()
    assert not _same(some, _fed(Moments(5, seed=1), arrays))


def test_each_array_gives_other_rows():
    x = np.random.default_rng(2).standard_normal((20000, 5)).astype(np.float32)
    once, twice = _fed(Moments(5), [x]), _fed(Moments(5), [x, x])
    assert np.abs(twice.products - 2 * once.products).max() > 1e-3


def test_moments_refuse_another_layer():
    with pytest.raises(ValueError, match="rows of 4, not of 5"):
        Moments(5).start().add(np.ones((2, 4)))


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60), st.integers(1, 5))
@SETTINGS
def test_calls_do_not_matter_to_histograms(numbers, parts):
    x = np.array(numbers, np.float32)
    pieces = [piece for piece in np.array_split(x, parts) if piece.size]
    whole: Bins = _fed(Histogram(16), [x])
    assert _same(whole, _fed(Histogram(16), pieces))
    assert list(itertools.accumulate(whole.counts))[-1] + whole.zeros == x.size
