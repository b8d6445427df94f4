"""How much goes from which layer: the least noise for what is saved."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_passes.prune.allocation import Choice, allocate


def test_the_cheapest_layer_comes_first() -> None:
    layers = {"a": [Choice("a1", 1.0, 1.0)], "b": [Choice("b1", 1.0, 0.5)]}
    assert allocate(layers, 1.0) == {"b": "b1"}
    assert allocate(layers, 1.5) == {"a": "a1", "b": "b1"}


def test_what_cannot_be_saved_is_the_most() -> None:
    assert allocate({"a": [Choice("a1", 1.0, 1.0), Choice("a2", 2.0, 9.0)]}, 5.0) == {"a": "a2"}
    assert allocate({"a": []}, 1.0) == {}


def test_a_choice_above_the_hull_ends_the_path_if_it_is_enough() -> None:
    layers = {"a": [Choice(1, 1.0, 0.9), Choice(2, 2.0, 1.0)]}
    assert allocate(layers, 2.0) == {"a": 2}
    assert allocate(layers, 0.5) == {"a": 1}


@pytest.mark.parametrize("seed", range(20))
def test_no_other_allocation_saves_more_with_less_noise(seed: int) -> None:
    """Points of the greedy path that end with a whole step of the hull are optimal."""
    rng = np.random.default_rng(seed)
    layers = {
        name: [
            Choice((name, i), float(saved), float(noise))
            for i, (saved, noise) in enumerate(zip(rng.random(4) + 0.1, rng.random(4), strict=True))
        ]
        for name in "abc"
    }
    found = allocate(layers, float(rng.random()))
    saved = sum(layers[name][what[1]].saved for name, what in found.items())
    noise = sum(layers[name][what[1]].noise for name, what in found.items())
    for picked in itertools.product(*([None, *choices] for choices in layers.values())):
        chosen = [choice for choice in picked if choice is not None]
        if sum(choice.saved for choice in chosen) >= saved + 1e-12:
            slack = max(choice.noise for choices in layers.values() for choice in choices)
            assert sum(choice.noise for choice in chosen) >= noise - slack
