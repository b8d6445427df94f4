"""Sizes for the dynamic dims of a model with which it runs.

A graph states few of its constraints (H and W divide by 32, two unnamed dims are equal), so sizes are tried
in the original itself: first usual ones, then those that the graph mentions, then mixtures.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.samples.inputs import InputSpec

# Choices by variable: a dim's name, or ``input:axis`` for an unnamed dim, or ``input=`` for a value.
Choice = dict[str, int]

_USUAL = (
    1,
    2,
    3,
    4,
    8,
    16,
    32,
    48,
    64,
    80,
    96,
    128,
    224,
    256,
    320,
    400,
    480,
    512,
    576,
    640,
    1024,
    4096,
    16000,
)
_BATCH = (1, 2, 3)
_IMAGE = (32, 64, 48, 96, 224)
_LENGTH = (16, 8, 32, 5, 64)
_ALTERNATIVES = 2
_BUDGET_S = 10.0
_TRIES = 600
_PLAIN_TRIES = 4
_LARGER_TRIES = 6
# What a latency is measured with when the user names no shape: nearer to what people run than the samples.
_WORKLOAD_IMAGE = (224, 320, 256)
_WORKLOAD_LENGTH = (128, 256, 64)
_WORKLOAD_TRIES = 3


@dataclass(frozen=True)
class Variable:
    """Something to choose, with the candidates in order of preference; ``small`` ones stay 1 at first."""

    name: str
    candidates: tuple[int, ...]
    small: bool = False


def variables_of(
    specs: Sequence[InputSpec], mentioned: Sequence[int], workload: bool = False
) -> list[Variable]:
    """One variable per distinct dynamic dim of the inputs; a workload prefers larger sizes."""
    image = _WORKLOAD_IMAGE + _IMAGE if workload else _IMAGE
    length = _WORKLOAD_LENGTH + _LENGTH if workload else _LENGTH
    found: dict[str, Variable] = {}
    for spec in specs:
        rank = len(spec.shape or ())
        for axis, dim in enumerate(spec.shape or ()):
            name = dim_name(spec, axis)
            if isinstance(dim, int) or name in found:
                continue
            batch = (axis == 0 and rank > 1) or "batch" in name.lower()
            first = _BATCH if batch else image if rank >= 4 else length
            candidates = dict.fromkeys((*first, *mentioned, *_USUAL))
            found[name] = Variable(name, tuple(candidates), small=batch)
    return list(found.values())


def dim_name(spec: InputSpec, axis: int) -> str:
    """The name of the variable of a dynamic dim."""
    dim = spec.shape[axis] if spec.shape else None
    return dim if isinstance(dim, str) else f"{spec.name}:{axis}"


def search(
    variables: Sequence[Variable],
    runs: Callable[[Choice], bool],
    seed: int,
    one: bool = False,
) -> list[Choice]:
    """Choices with which the model runs, the plainest first (or only that); empty if none was found."""
    end = time.monotonic() + _BUDGET_S
    proposals = itertools.islice(_proposals(variables, seed), _TRIES)
    base = next((choice for choice in proposals if time.monotonic() < end and runs(choice)), None)
    if base is None or one:
        return [base] if base else []
    found = [base]
    for group in _groups(variables, base):
        fitting = (
            choice
            for size in _others(group[0], base[group[0].name])
            if time.monotonic() < end and runs(choice := base | {variable.name: size for variable in group})
        )
        found += itertools.islice(fitting, _ALTERNATIVES)
    return found


def enlarged(variables: Sequence[Variable], choice: Choice, runs: Callable[[Choice], bool]) -> Choice:
    """The choice with every variable at the first of its preferred candidates with which the model runs."""
    for variable in variables:
        for size in variable.candidates[:_WORKLOAD_TRIES]:
            other = choice | {variable.name: size}
            if other == choice or runs(other):
                choice = other
                break
    return choice


def _others(variable: Variable, size: int) -> list[int]:
    """Other candidates for a variable that runs with ``size``: preferred ones, then larger ones."""
    others = [other for other in variable.candidates if other != size]
    larger = sorted(other for other in others if other > size)
    return list(dict.fromkeys(others[:_PLAIN_TRIES] + larger[:_LARGER_TRIES]))


def _proposals(variables: Sequence[Variable], seed: int) -> Iterator[Choice]:
    """Choices to try, each once."""
    seen = set()
    for choice in _all_proposals(variables, seed):
        key = tuple(choice.values())
        if key not in seen:
            seen.add(key)
            yield choice


def _all_proposals(variables: Sequence[Variable], seed: int) -> Iterator[Choice]:
    first = {variable.name: variable.candidates[0] for variable in variables}
    yield first
    if not variables:
        return
    free = [variable for variable in variables if not variable.small]
    sizes = dict.fromkeys(size for variable in free for size in variable.candidates)
    for size in sizes:
        yield first | {variable.name: size for variable in free if size in variable.candidates}
    for variable in variables:
        ones = first | {other.name: 1 for other in free if 1 in other.candidates}
        for size in variable.candidates:
            yield ones | {variable.name: size}
            yield first | {variable.name: size}
    rng = np.random.default_rng(seed)
    for _ in range(10_000):
        yield {variable.name: int(rng.choice(variable.candidates)) for variable in variables}


def _groups(variables: Sequence[Variable], base: Choice) -> Iterator[list[Variable]]:
    """Variables to change together: each alone, and those that have the same size (unnamed batch dims)."""
    yield from ([variable] for variable in variables)
    for size in dict.fromkeys(base.values()):
        same = [variable for variable in variables if base[variable.name] == size]
        if len(same) > 1:
            yield same
