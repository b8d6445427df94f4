"""The fewest nodes that must stay float for a budget: regions first, the noisiest, and then their parts.

Regions of neighbours are tried each alone in half, which ranks them. The least number of the noisiest that
keeps the budget is found by bisection. What of them is not needed is given back by halving them as long as
parts of them can go (after delta debugging: Zeller & Hildebrandt 2002).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from graphopt.search import first_failure

REGIONS = 16
MOST_SECONDS = 120.0

Names = tuple[str, ...]
Holds = Callable[[frozenset[str]], bool]


def regions(nodes: Sequence[str], count: int = REGIONS) -> list[Names]:
    """Neighbours together: at most so many parts of about one size."""
    step = -(-len(nodes) // count) or 1
    return [tuple(nodes[start : start + step]) for start in range(0, len(nodes), step)]


def smallest(ranked: Sequence[Names], holds: Holds) -> frozenset[str]:
    """The nodes of the first regions that must stay float, as few as are found in time.

    Args:
        ranked: the regions, the noisiest first.
        holds: whether the budget is kept if these nodes are float; taken to be true if all are.
    """
    count = first_failure(len(ranked), lambda k: holds(_joined(ranked[:k])))
    return _without_needless(ranked[:count], holds)


def _without_needless(kept: Sequence[Names], holds: Holds) -> frozenset[str]:
    found, pending = _joined(kept), list(kept)
    end = time.monotonic() + MOST_SECONDS
    while pending and time.monotonic() < end:
        part = pending.pop()  # the least noisy first
        rest = found.difference(part)
        if rest != _joined(kept[:-1]) and holds(rest):  # those were tried by the bisection
            found = rest
        elif len(part) > 1:
            middle = len(part) // 2
            pending += [part[:middle], part[middle:]]
    return found


def rank(parts: Sequence[Names], noise: Mapping[Names, float]) -> list[Names]:
    """The noisiest first."""
    return sorted(parts, key=lambda part: -noise[part])


def _joined(parts: Sequence[Names]) -> frozenset[str]:
    return frozenset(name for part in parts for name in part)
