"""Sums over pairs of rows: what a layer reads, and what is given at the same places."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from graphopt.runtime.moments import Moments, Patches
from graphopt.runtime.pairs import Paired, Pairs, Sums


def fed(kind: Paired, arrays: list[tuple[np.ndarray, np.ndarray]]) -> Pairs:
    pairs = kind.start()
    for x, y in arrays:
        pairs.add(x, y)
    return pairs


def same_sums(sums: Sums, x: np.ndarray, y: np.ndarray) -> None:
    """Sums over the rows x [n, columns] and y [n, channels] of one group."""
    for found, expected in ((sums.xx[0], x.T @ x), (sums.xy[0], x.T @ y), (sums.x[0], x.sum(0))):
        np.testing.assert_allclose(found, expected, rtol=5e-6, atol=5e-6)
    np.testing.assert_allclose(sums.y[0], y.sum(0), rtol=5e-6, atol=5e-6)
    np.testing.assert_allclose(sums.yy[0], (y**2).sum(0), rtol=1e-4)
    assert sums.count == len(x)


@pytest.mark.parametrize("seed", range(3))
def test_products(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [
        (rng.standard_normal((2, 5 + i, 6), np.float32), rng.exponential(1.0, (2, 5 + i, 3)))
        for i in range(4)
    ]
    pairs = fed(Paired(Moments(6), 3, -1), arrays)
    x, y = (np.concatenate([one[i].reshape(-1, one[i].shape[-1]) for one in arrays]) for i in range(2))
    same_sums(pairs.fit, x.astype(np.float64), y)


def test_every_so_many_th_array_only_judges() -> None:
    rng = np.random.default_rng(0)
    arrays = [(rng.random((4, 6), np.float32), rng.random((4, 3), np.float32)) for _ in range(7)]
    pairs = fed(Paired(Moments(6), 3, -1, held_every=3), arrays)
    for sums, numbers in ((pairs.fit, [0, 1, 3, 4, 6]), (pairs.held, [2, 5])):
        same_sums(sums, *(np.concatenate([arrays[n][i] for n in numbers]).astype(float) for i in range(2)))
    whole = pairs.fit + pairs.held
    assert whole.count == pairs.count == 28
    np.testing.assert_allclose(whole.xx, fed(Paired(Moments(6), 3, -1), arrays).fit.xx, rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rows", [7, 1000])
def test_a_conv_gives_its_outputs_back(groups: int, rows: int) -> None:
    """The rows that are picked of input and output belong together: W solves them without error."""
    rng = np.random.default_rng(groups)
    weight = rng.standard_normal((8, 4 // groups, 3, 2))
    patches = Patches((3, 2), (2, 1), (1, 2), (1, 0, 1, 2), groups)
    kind = Paired(Moments(weight[0].size, patches=patches, rows=rows), 8, 1)
    arrays = []
    for _ in range(12):
        x = rng.standard_normal((3, 4, 6, 7))
        windows = patches.windows(x)  # [batch, channels, height, width, *kernel]
        split = windows.reshape(3, groups, 4 // groups, *windows.shape[2:])
        y = np.einsum("bgchwij,gmcij->bgmhw", split, weight.reshape(groups, 8 // groups, -1, 3, 2))
        arrays.append((x, y.reshape(3, 8, *y.shape[3:])))
    sums = fed(kind, arrays).fit
    found = np.linalg.solve(sums.xx, sums.xy).swapaxes(1, 2).reshape(weight.shape)
    np.testing.assert_allclose(found, weight, rtol=1e-9, atol=1e-10)
    assert sums.count == 12 * min(rows, 3 * 3 * 7)


def test_sums_travel() -> None:
    rng = np.random.default_rng(0)
    pairs = fed(Paired(Moments(6), 3, -1), [(rng.random((4, 6)), rng.random((4, 3)))])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pairs)).fit.xy, pairs.fit.xy)


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_is_refused(which: int) -> None:
    pair = [np.ones((2, 6)), np.ones((2, 3))]
    pair[which][1, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fed(Paired(Moments(6), 3, -1), [(pair[0], pair[1])])


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="4 channels, not 3"):
        fed(Paired(Moments(6), 3, -1), [(np.ones((2, 6)), np.ones((2, 4)))])


def test_what_varies_little_about_a_large_mean_is_not_lost() -> None:
    """Float32 products alone are off by more than all that varies."""
    rng = np.random.default_rng(0)
    pairs = Paired(Moments(5), 3, -1, 4).start()
    xs = [(1000 + 0.1 * rng.standard_normal((50, 5))).astype(np.float32) for _ in range(60)]
    ys = [(x[:, :3] - 990).astype(np.float32) for x in xs]
    for x, y in zip(xs, ys, strict=True):
        pairs.add(x, y)
    for sums, part in ((pairs.fit, [i for i in range(60) if i % 4 != 3]), (pairs.held, range(3, 60, 4))):
        x, y = (np.concatenate([one[i] for i in part]).astype(np.float64) for one in (xs, ys))
        near = {"rtol": 1e-9}
        np.testing.assert_allclose(sums.xx[0], x.T @ x, **near)
        np.testing.assert_allclose(sums.xy[0], x.T @ y, **near)
        np.testing.assert_allclose(sums.x[0], x.sum(axis=0), **near)
        np.testing.assert_allclose(sums.y[0], y.sum(axis=0), **near)
        np.testing.assert_allclose(sums.yy[0], (y * y).sum(axis=0), **near)
