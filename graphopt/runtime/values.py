"""Values that travel between graphopt and its worker: tensors as their bytes, sequences, maps and optionals.

The worker must not import onnx, so a tensor here is an ONNX element type, a shape and little-endian packed
bytes. That keeps bfloat16, float8 and the 4-bit types exact, which numpy alone cannot hold.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphopt.storage.mapping import map_range

STRING, BOOL, FLOAT16, BFLOAT16 = 8, 9, 10, 16

# onnx.TensorProto.DataType → the dtype of numpy, or of ml_dtypes from 16 on.
DTYPE_NAMES: dict[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
}
ELEM_TYPES: dict[str, int] = {name: elem_type for elem_type, name in DTYPE_NAMES.items()}
PACKED_BITS: dict[int, int] = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}
# Types of ONNX Runtime's inputs and outputs that numpy has, too.
NUMPY_TYPES: frozenset[str] = frozenset(
    f"tensor({name})"
    for name in (
        "float",
        "double",
        "float16",
        "bool",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
)
FLOATING: frozenset[int] = frozenset({1, 10, 11, 14, 15, 16, 17, 18, 19, 20, 23, 24})


def dtype_of(elem_type: int) -> np.dtype[Any]:
    """The dtype that holds one element (packed types: one byte each), of numpy or of ml_dtypes.

    Raises:
        TypeError: strings have no fixed-size dtype.
    """
    if elem_type not in DTYPE_NAMES:
        raise TypeError(f"element type {elem_type} has no dtype")
    name = DTYPE_NAMES[elem_type]
    if elem_type < BFLOAT16:
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


@dataclass(frozen=True)
class FileRange:
    """``length`` bytes of a file, from ``offset``; weights and large results travel as this."""

    path: str
    offset: int
    length: int

    def map(self) -> NDArray[np.uint8]:
        """The bytes as a read-only memory map; the file may be removed afterwards."""
        with Path(self.path).open("rb") as file:
            return map_range(file.fileno(), self.offset, self.length)


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor: ONNX element type, shape, and its raw little-endian bytes (strings: a flat tuple)."""

    elem_type: int
    shape: tuple[int, ...]
    data: bytes | NDArray[np.uint8] | FileRange | tuple[str, ...]

    @classmethod
    def of(cls, array: Any) -> Tensor:
        """A tensor of any numpy or ml_dtypes array (object and str arrays become strings)."""
        array = np.asarray(array)
        if array.dtype.kind in "OUST":
            return cls(STRING, array.shape, tuple(_text(item) for item in array.ravel().tolist()))
        elem_type = ELEM_TYPES[array.dtype.name]
        flat = np.ascontiguousarray(array).reshape(-1)
        bits = PACKED_BITS.get(elem_type)
        data = _pack(flat.view(np.uint8), bits) if bits else flat.view(np.uint8)
        return cls(elem_type, tuple(array.shape), data)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of raw bytes (strings count as nothing)."""
        if isinstance(self.data, FileRange):
            return self.data.length
        return 0 if isinstance(self.data, tuple) else len(self.data)

    def raw(self) -> NDArray[np.uint8]:
        """The raw bytes, mapped when they lie in a file.

        Raises:
            TypeError: a string tensor has none.
        """
        if isinstance(self.data, tuple):
            raise TypeError("a string tensor has no raw bytes")
        if isinstance(self.data, FileRange):
            return self.data.map()
        return np.frombuffer(self.data, np.uint8)

    def numpy(self) -> NDArray[Any]:
        """The values, as an array of numpy or ml_dtypes (strings: an object array)."""
        if isinstance(self.data, tuple):
            return np.array(self.data, dtype=object).reshape(self.shape)
        raw = self.raw()
        if bits := PACKED_BITS.get(self.elem_type):
            raw = _unpack(raw, bits, self.size)
        return raw.view(dtype_of(self.elem_type)).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Computed(Tensor):
    """A tensor that a run of graphopt's gave: it may hold NaN and infinity, where a user's may not."""


# A tensor, a sequence (list), a map (dict of plain Python values) or an empty optional (None).
Value: TypeAlias = "Tensor | list[Any] | dict[Any, Any] | None"
Feeds: TypeAlias = Mapping[str, Value]


def keep(values: Mapping[str, Value]) -> dict[str, Value]:
    """The same values with every file range mapped, their files then removed: nothing is left on disk."""
    kept = dict(values)
    paths = set()
    for name, value in values.items():
        if isinstance(value, Tensor) and isinstance(value.data, FileRange):
            paths.add(value.data.path)
            kept[name] = Tensor(value.elem_type, value.shape, value.raw())
    for path in paths:
        os.unlink(path)
    return kept


def _text(item: Any) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)


def _pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack one element per byte into ``8 // bits`` per byte, the first in the lowest bits."""
    per_byte = 8 // bits
    padded = np.zeros(-(-len(values) // per_byte) * per_byte, np.uint8)
    padded[: len(values)] = values & (2**bits - 1)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1)
    return packed


def _unpack(raw: NDArray[np.uint8], bits: int, size: int) -> NDArray[np.uint8]:
    """Undo :func:`_pack`: one element per byte."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    return ((raw[:, None] >> shifts) & np.uint8(2**bits - 1)).reshape(-1)[:size]
