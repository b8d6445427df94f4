"""Accumulators over a session's outputs, in the worker: activations stay there, only statistics leave."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from graphopt.runtime.accumulators import Accumulator, Array, Kind
from graphopt.runtime.values import PACKED_BITS, STRING, dtype_of


@dataclass(frozen=True)
class Tap:
    """How the arrays of one value come out of a session.

    Attributes:
        data: an output that is the value itself; or, if ``shapes`` is given, the elements of many arrays, one
            after another.
        shapes: an int64 output that holds rank and dims of each of these arrays.
    """

    data: str
    shapes: str = ""

    def arrays(self, outputs: Mapping[str, Any]) -> Iterator[Array]:
        """The arrays of one run.

        Raises:
            ValueError: they hold no numbers.
        """
        data = _view(outputs[self.data])
        if not self.shapes:
            yield data
            return
        header, start = _view(outputs[self.shapes]).tolist(), 0
        while header:
            rank = header[0]
            shape, header = header[1 : 1 + rank], header[1 + rank :]
            size = math.prod(shape)
            yield data[start : start + size].reshape(shape)
            start += size


@dataclass(frozen=True)
class Collected:
    """What was gathered of one value by one accumulator; ``wrong`` says why there is nothing to use."""

    accumulator: Accumulator | None
    wrong: str = ""


# The values that are gathered together, and what to gather of them.
Wanted: TypeAlias = tuple[Sequence[Tap], Sequence[Kind]]


class Watch:
    """Accumulators over the outputs of one session."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self._wanted = [(taps, [Collected(kind.start()) for kind in kinds]) for taps, kinds in wanted]
        self._fed = 0

    def feed(self, outputs: Mapping[str, Any]) -> None:
        """Take the outputs of one run, by name, as OrtValues or arrays of numpy."""
        for taps, collected in self._wanted:
            try:
                for arrays in zip(*(tap.arrays(outputs) for tap in taps), strict=True):
                    collected[:] = [self._added(one, arrays) for one in collected]
            except ValueError as error:  # no numbers
                collected[:] = [Collected(None, str(error)) for _ in collected]
        self._fed += 1

    def results(self) -> list[list[Collected]]:
        """What was gathered, in the order that was asked for."""
        return [collected for _, collected in self._wanted]

    def _added(self, one: Collected, arrays: Sequence[Array]) -> Collected:
        if one.accumulator is None:
            return one
        try:
            one.accumulator.add(*arrays)
        except ValueError as error:
            return Collected(None, f"sample {self._fed}: {error}")
        return one


def _view(value: Any) -> Array:
    """The array of an OrtValue, without a copy where it lies in this process's memory.

    Raises:
        ValueError: it holds no numbers of a byte and more.
    """
    if isinstance(value, np.ndarray):
        return value
    elem_type, shape = value.element_type(), tuple(value.shape())
    if elem_type == STRING or elem_type in PACKED_BITS:
        raise ValueError("only tensors of numbers of at least 8 bits have statistics")
    if not math.prod(shape):
        return np.zeros(shape, dtype_of(elem_type))
    if value.device_name() != "cpu":
        found: Array = value.numpy()
        return found
    data = (ctypes.c_uint8 * value.tensor_size_in_bytes()).from_address(value.data_ptr())
    data._owner = value  # keeps the memory as long as the array
    return np.frombuffer(data, dtype_of(elem_type)).reshape(shape)
