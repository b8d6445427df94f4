"""The one search behind bisection: the first step at which something goes wrong."""

from __future__ import annotations

from collections.abc import Callable


def first_failure(steps: int, fails: Callable[[int], bool]) -> int:
    """The smallest ``k`` in 1…steps for which ``fails(k)`` holds, in at most ⌈log₂ steps⌉ calls.

    Args:
        steps: how many there are; ``fails(steps)`` is known to hold, ``fails(0)`` known not to.
        fails: whether the first ``k`` steps together fail; taken to stay true once it is true.
    """
    low, high = 0, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high
