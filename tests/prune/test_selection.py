"""Which channels go first: what the others can make up for, whatever their size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_passes.prune.readers import Seen
from graphopt_passes.prune.selection import Order, ordered


def reader(x: np.ndarray, rows: np.ndarray, size: int = 1, damp: float = 1e-9) -> Seen:
    """A layer of these rows on inputs x [n, columns], with units of so many columns."""
    columns = np.arange(x.shape[1]).reshape(-1, size)
    h = x.T @ x + damp * np.eye(x.shape[1])
    return Seen(rows.copy(), h, float(np.square(x @ rows.T).sum()), columns, np.full(len(rows), -1))


def lost(x: np.ndarray, rows: np.ndarray, kept: np.ndarray) -> float:
    """What the best weights on these columns lose, as a share."""
    y = x @ rows.T
    solution = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
    return float(np.square(x[:, kept] @ solution - y).sum() / np.square(y).sum())


RNG = np.random.default_rng(0)
X, ROWS = RNG.standard_normal((500, 12)) @ RNG.standard_normal((12, 12)), RNG.standard_normal((5, 12))


def check(order: Order, width: int) -> None:
    assert sorted(order.units.tolist()) == list(range(width))
    assert len(order.lost) == width + 1 and order.lost[0] == 0
    assert (np.diff(order.lost) >= 0).all()


def test_what_the_surgeon_says_is_lost_is_lost() -> None:
    order = ordered([reader(X, ROWS)], np.ones(12), "obs")
    check(order, 12)
    for count in range(1, 12):
        assert order.lost[12 - count] == pytest.approx(lost(X, ROWS, order.kept(count)), rel=1e-4, abs=1e-7)


def test_units_of_several_columns_go_together() -> None:
    order = ordered([reader(X, ROWS, size=3)], np.ones(4), "obs")
    check(order, 4)
    kept = (order.kept(2)[:, None] * 3 + np.arange(3)).reshape(-1)
    assert order.lost[2] == pytest.approx(lost(X, ROWS, kept), rel=1e-4)


def test_the_first_to_go_is_the_best_to_go() -> None:
    order = ordered([reader(X, ROWS)], np.ones(12), "obs")
    losses = [lost(X, ROWS, np.delete(np.arange(12), unit)) for unit in range(12)]
    assert order.units[0] == int(np.argmin(losses))


def test_a_channel_that_others_hold_as_well_goes_first_however_large() -> None:
    x = X.copy()
    x[:, 7] = 10 * (x[:, 1] - x[:, 2])
    methods = {name: ordered([reader(x, ROWS)], np.ones(12), name).units[0] for name in ("obs", "energy")}
    assert methods["obs"] in (1, 2, 7)
    assert methods["energy"] != 7


def test_several_readers_decide_together() -> None:
    """A channel that one reader does not need but another does stays longer than one that neither needs."""
    first, second = ROWS.copy(), ROWS.copy()
    first[:, [3, 4]] = 0
    second[:, [4, 5]] = 0
    order = ordered([reader(X, first), reader(X, second)], np.ones(12), "obs")
    assert order.units[0] == 4


@pytest.mark.parametrize("method", ["obs", "lasso", "energy", "l2", "l1"])
def test_every_method_orders_all_units(method: str) -> None:
    check(ordered([reader(X, ROWS)], RNG.random(12), method), 12)


def test_without_readers_norms_decide() -> None:
    order = ordered([], np.array([3.0, 1.0, 2.0]), "obs")
    assert order.units.tolist() == [1, 2, 0]


def test_the_lasso_keeps_what_no_other_subset_of_its_size_beats_by_much() -> None:
    x = np.random.default_rng(1).standard_normal((400, 8))
    rows = np.random.default_rng(2).standard_normal((4, 8)) * np.array([3, 0.1, 2, 0.2, 1, 3, 0.1, 2])
    order = ordered([reader(x, rows)], np.ones(8), "lasso")
    best = min(lost(x, rows, np.array(kept)) for kept in itertools.combinations(range(8), 4))
    assert lost(x, rows, order.kept(4)) < 1.5 * best + 1e-3


def test_wide_groups_lose_several_at_a_time_and_little_more() -> None:
    rng = np.random.default_rng(3)
    x, rows = rng.standard_normal((900, 200)), rng.standard_normal((6, 200)) * rng.random(200)
    order = ordered([reader(x, rows)], np.ones(200), "obs")
    check(order, 200)
    static = ordered([reader(x, rows)], np.ones(200), "energy")
    assert lost(x, rows, order.kept(100)) < lost(x, rows, static.kept(100))
