"""Floating-point constants as rules change them: read in float64, block by block, and rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match
from graphopt.storage.weights import slices

Array = np.ndarray[Any, Any]
_MANTISSA_BITS = {
    ir.DataType.DOUBLE: 52,
    ir.DataType.FLOAT: 23,
    ir.DataType.FLOAT16: 10,
    ir.DataType.BFLOAT16: 7,
}
_BLOCK = 1 << 20  # elements of a weight that are held in float64 at once


def floating(match: Match, value: ir.Value | None, what: str) -> ir.TensorProtocol:
    """A constant, which is not read; refused unless it is a floating-point constant."""
    tensor = g.constant(value)
    match.require(tensor is not None, f"its {what} is no constant")
    assert tensor is not None
    match.require(tensor.dtype in _MANTISSA_BITS, f"its {what} is {tensor.dtype.name}, not floating point")
    return tensor


def vector(match: Match, value: ir.Value | None, what: str) -> Array:
    """A small constant in float64, of any shape; refused unless it is a floating-point constant."""
    return floating(match, value, what).numpy().astype(np.float64)


def dims(match: Match, value: ir.Value | None, what: str) -> tuple[int, ...]:
    """The shape of a constant that is not read; refused unless it is a floating-point constant."""
    return tuple(floating(match, value, what).shape.numpy())


def blocks(tensor: ir.TensorProtocol) -> Iterator[tuple[slice, Array]]:
    """A tensor of rank 1 and more in float64, by slices of its first axis."""
    return ((part, block.astype(np.float64)) for part, block in slices(tensor, _BLOCK))


def rows_of(factors: Array, part: slice) -> Array:
    """The rows of a block from an array that broadcasts to the whole tensor."""
    return factors if factors.shape[0] == 1 else factors[part]


@dataclass
class _Rounding:
    """Rounds float64, block by block, and notes what the dtype's range loses beyond its rounding."""

    dtype: ir.DataType
    largest: float = 0.0
    error: float = 0.0
    finite: bool = True

    def round(self, data: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            result = data.astype(self.dtype.numpy())
            back = result.astype(np.float64)
            self.finite = self.finite and bool(np.isfinite(back).all())
            back -= data
            self.error = max(self.error, float(np.abs(back, out=back).max(initial=0.0)))
            self.largest = max(self.largest, float(np.abs(data).max(initial=0.0)))
        return result

    def constant(self, match: Match, data: Array, name: str) -> ir.Value:
        """The rounded data as a constant; refused when too much was lost."""
        match.require(self.finite, f"the merged '{name}' is not finite in {self.dtype.name}")
        epsilon = 2.0 ** -_MANTISSA_BITS[self.dtype]
        fits = self.error <= epsilon * self.largest
        match.require(fits, f"the merged '{name}' underflows in {self.dtype.name}")
        return match.constant(data, name)


def stored(match: Match, data: Array, dtype: ir.DataType, name: str) -> ir.Value:
    """A constant rounded from float64; refused when the dtype's range loses more than its rounding."""
    rounding = _Rounding(dtype)
    return rounding.constant(match, rounding.round(data), name)


def rounded(match: Match, old: ir.Value, new: Array) -> ir.Value:
    """A new constant in the place of ``old``, in its dtype; the engine judges what a shared one costs."""
    tensor = g.constant(old)
    assert tensor is not None
    return stored(match, new, tensor.dtype, old.name or "weight")


def scaled(match: Match, old: ir.Value | None, factors: Array) -> ir.Value:
    """A new constant in the place of ``old``: times factors that broadcast to it and have its rank."""
    tensor = floating(match, old, "weight")
    assert old is not None
    result = np.empty(tensor.shape.numpy(), tensor.dtype.numpy())
    rounding = _Rounding(tensor.dtype)
    for part, block in blocks(tensor):
        result[part] = rounding.round(block * rows_of(factors, part))
    return rounding.constant(match, result, old.name or "weight")
