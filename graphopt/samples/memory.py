"""Samples that Python callers hand over as arrays: a dict of stacks, or one dict per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import DataError, UsageError
from graphopt.runtime.values import Value
from graphopt.samples.inputs import InputSpec, check
from graphopt.samples.userdata import LABELS, Reader, cut, sample_count

NAME = "data"


def reader(data: object, specs: Sequence[InputSpec], name: str = NAME) -> Reader:
    """What iterates over samples in memory, each time from the start.

    Args:
        data: a mapping from input names to arrays, which hold samples as those of an .npz file do; or a list
            or tuple of mappings, one for each sample.
        specs: the model's inputs.
        name: what messages call it.

    Raises:
        UsageError: ``data`` is something else.
        DataError: arrays of a mapping hold different numbers of samples; while iterating, when a sample does
            not fit the model.
    """
    if isinstance(data, Mapping):
        return partial(_rows, data, specs, name)
    if isinstance(data, list | tuple) and all(isinstance(sample, Mapping) for sample in data):
        return partial(_samples, data, specs, name)
    raise UsageError(
        f"{name} is {type(data).__name__}: give a file, a folder, package.module:function, a dict of arrays"
        " by input name, or a list of such dicts"
    )


def _samples(
    data: Sequence[Mapping[str, Any]], specs: Sequence[InputSpec], source: str
) -> Iterator[dict[str, Value]]:
    for index, sample in enumerate(data):
        yield check(specs, sample, f"{source}: sample {index}")


def _rows(data: Mapping[str, Any], specs: Sequence[InputSpec], source: str) -> Iterator[dict[str, Value]]:
    by_name = {spec.name: spec for spec in specs}
    names = [name for name in data if name != LABELS or name in by_name]
    if unknown := [name for name in names if name not in by_name]:
        check(specs, dict.fromkeys(unknown), source)
    stacks = {name: _stack(data[name], by_name[name], source) for name in names}
    for index in range(sample_count({name: len(stack) for name, stack in stacks.items()}, source)):
        sample = {name: stack[index if len(stack) > 1 else 0] for name, stack in stacks.items()}
        yield check(specs, sample, f"{source}: sample {index}")


def _stack(given: Any, spec: InputSpec, source: str) -> NDArray[Any]:
    """An array whose first axis counts samples."""
    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise DataError(f"{source}: input {spec.name!r} is no array ({error})") from None
    shape, count = cut(array.shape, spec)
    return array.reshape(count, *shape)
