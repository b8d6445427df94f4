"""The fewest nodes on float: what is found keeps the budget, and nothing of it could be given back."""

from __future__ import annotations

import random

import pytest

from graphopt_passes.halve.search import Names, rank, regions, smallest

NODES = [f"n{i}" for i in range(100)]


def found(culprits: set[str], noise: dict[Names, float] | None = None) -> tuple[frozenset[str], int]:
    """What is kept if exactly these nodes break the budget, and after how many tries."""
    tries = []

    def holds(kept: frozenset[str]) -> bool:
        tries.append(kept)
        return culprits <= kept

    parts = regions(NODES)
    levels = noise or {part: float(len(culprits.intersection(part))) for part in parts}
    return smallest(rank(parts, levels), holds), len(tries)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 2, 5])
def test_exactly_the_culprits_are_kept(seed: int, count: int) -> None:
    culprits = set(random.Random(seed).sample(NODES, count))
    kept, tries = found(culprits)
    assert kept == culprits
    assert tries < 20 * count


def test_a_wrong_ranking_costs_tries_only() -> None:
    culprits = {"n3", "n97"}
    noise = {part: random.Random(index).random() for index, part in enumerate(regions(NODES))}
    assert found(culprits, noise)[0] == culprits


def test_regions_are_neighbours_and_complete() -> None:
    parts = regions(NODES)
    assert [name for part in parts for name in part] == NODES
    assert len(parts) <= 16
    assert regions(NODES[:3]) == [("n0",), ("n1",), ("n2",)]
