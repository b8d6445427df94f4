"""How much to remove from which layer: always what makes the least noise for what it saves.

With a noise Nₗ(c) and a saving sₗ(c) for each choice c of layer l, and noises that add up, the minimum of
Σ Nₗ for a given Σ sₗ lies on the lower convex hulls of the layers: their edges, in the order of slope
ΔN / Δs, are the steps of a greedy path whose every point is optimal (Shoham and Gersho 1988). The last step
is shortened to the choice with the least noise that still saves what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What can be done to a layer.

    Attributes:
        what: the choice itself.
        saved: what it saves, above 0, in the unit of the objective.
        noise: what it adds to the noise of the outputs.
    """

    what: T
    saved: float
    noise: float


def allocate(layers: Mapping[str, Sequence[Choice[T]]], target: float) -> dict[str, T]:
    """A choice for some layers, by name, that together save ``target`` or, if that cannot be, the most."""
    steps = [(slope, name, choice) for name, choices in layers.items() for slope, choice in _hull(choices)]
    found: dict[str, Choice[T]] = {}
    saved = 0.0
    for _, name, choice in sorted(steps, key=lambda step: step[:2]):
        if saved >= target:
            break
        before = saved - (found[name].saved if name in found else 0.0)
        enough = [one for one in layers[name] if before + one.saved >= target]
        found[name] = min(enough, key=lambda one: one.noise) if choice in enough else choice
        saved = before + found[name].saved
    return {name: choice.what for name, choice in found.items()}


def _hull(choices: Sequence[Choice[T]]) -> Iterator[tuple[float, Choice[T]]]:
    """The edges of the lower convex hull from nothing saved without noise: the slope and where it ends."""
    at_saved = at_noise = 0.0
    rest = [choice for choice in choices if choice.saved > 0]
    while rest:
        slope, choice = _flattest(rest, at_saved, at_noise)
        yield slope, choice
        at_saved, at_noise = choice.saved, choice.noise
        rest = [one for one in rest if one.saved > at_saved]


def _flattest(choices: Sequence[Choice[T]], saved: float, noise: float) -> tuple[float, Choice[T]]:
    """The choice that adds the least noise for what it saves beyond what is saved; of equals the largest."""
    best = min(choices, key=lambda one: ((one.noise - noise) / (one.saved - saved), -one.saved))
    return (best.noise - noise) / (best.saved - saved), best
