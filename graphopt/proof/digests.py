"""Tells samples apart by a hash of their inputs, and finds out when a source gives others than before."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from graphopt.errors import DataError
from graphopt.progress import Progress, silent
from graphopt.runtime.values import STRING, Tensor, Value
from graphopt.samples.sampling import Sample, Samples

Digest = bytes


def digests(samples: Samples, progress: Progress = silent) -> list[Digest]:
    """The hash of every sample, from one pass.

    Raises:
        DataError: a sample does not fit the model.
    """
    found = []
    for index, sample in enumerate(samples):
        progress("reading samples", index)
        found.append(digest(sample))
    return found


def chosen(samples: Samples, known: Sequence[Digest], flags: Sequence[bool] | None = None) -> Samples:
    """The samples whose flag is set, or all; every pass checks that all are those that were hashed.

    Raises:
        DataError: while iterating, when a sample is another one than before.
    """

    def checked() -> Iterator[Sample]:
        for index, (sample, before) in enumerate(itertools.zip_longest(samples, known)):
            if sample is None or digest(sample) != before:
                raise DataError(
                    f"{samples.source} gives another sample {index} when it is read again: calibration and"
                    " judging need the same samples in the same order; seed it, and do not shuffle"
                )
            yield sample

    def make() -> Iterator[Sample]:
        return checked() if flags is None else itertools.compress(checked(), flags)

    return Samples(samples.source, make, samples.drawer)


def digest(sample: Sample) -> Digest:
    """A hash of a sample's inputs: names, types, shapes and contents."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(sample):
        state.update(f"{name!r}=".encode())
        _absorb(state, sample[name])
    return state.digest()


def _absorb(state: Any, value: Value) -> None:
    if isinstance(value, Tensor):
        state.update(f"{value.elem_type}{value.shape}".encode())
        state.update(repr(value.data).encode() if value.elem_type == STRING else value.raw())
    elif isinstance(value, list):
        state.update(f"[{len(value)}".encode())
        for item in value:
            _absorb(state, item)
    else:
        state.update(repr(value).encode())
