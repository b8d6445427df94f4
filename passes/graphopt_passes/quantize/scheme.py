"""What a quantized model is, apart from the graph: which nodes compute on integers, and on which grids.

A real number r lies on an affine grid as q = clamp(round(r / scale) + zero_point), which stands for
(q − zero_point) · scale (ONNX QuantizeLinear; Jacob et al. 2018). Rounding is half to even.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.storage.spill import Spill

Array = NDArray[Any]

# Below this a scale is a subnormal in some kernels; all numbers of such a tensor count as 0.
LEAST_SCALE = 1e-30


@dataclass(frozen=True)
class Grid:
    """The numbers that an integer tensor can stand for.

    Attributes:
        scale: step between neighbours, positive.
        zero_point: the integer that stands for 0.
        signed: int8 rather than uint8.
        bits: how many of the eight are used; 7 avoids saturation on x64 without VNNI.
    """

    scale: float
    zero_point: int = 0
    signed: bool = False
    bits: int = 8

    @classmethod
    def of(
        cls, low: float, high: float, *, signed: bool = False, symmetric: bool = False, bits: int = 8
    ) -> Grid:
        """The finest grid that holds 0 and the numbers between ``low`` and ``high``."""
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        least, most = _limits(signed, bits)
        if symmetric:
            span, zero = max(-low, high) / most, 0
            return cls(_scale(span), zero, signed, bits)
        scale = _scale((high - low) / (most - least))
        return cls(scale, int(np.clip(round(least - low / scale), least, most)), signed, bits)

    @property
    def low(self) -> float:
        """The least number on the grid."""
        return (_limits(self.signed, self.bits)[0] - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The largest number on the grid."""
        return (_limits(self.signed, self.bits)[1] - self.zero_point) * self.scale

    @property
    def dtype(self) -> np.dtype[Any]:
        """int8 or uint8."""
        return np.dtype(np.int8 if self.signed else np.uint8)

    def quantize(self, x: Array) -> Array:
        """The integers, of :attr:`dtype`."""
        least, most = _limits(self.signed, self.bits)
        scaled = np.rint(np.asarray(x, np.float32) / np.float32(self.scale)) + self.zero_point
        integers: Array = np.clip(scaled, least, most).astype(self.dtype)
        return integers

    def round(self, x: Array) -> Array:
        """The nearest numbers on the grid, float32."""
        rounded: Array = (self.quantize(x).astype(np.float32) - self.zero_point) * np.float32(self.scale)
        return rounded


@dataclass(frozen=True)
class IntegerWeight:
    """A weight as integers, symmetric (zero point 0).

    Attributes:
        data: int8, of the weight's shape.
        scales: float32 [n], one per channel along ``axis``, or [1] for the whole tensor.
        axis: the channels' axis.
        stored: the tensor in a file that ``data`` is a view of; None if it is in memory only.
    """

    data: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int
    stored: ir.TensorProtocol | None = None

    def kept(self, spill: Spill) -> IntegerWeight:
        """The same in a file, which takes no memory and is shared by all models that are made with it."""
        stored = spill.keep(ir.Tensor(self.data))
        return replace(self, data=stored.numpy(), stored=stored)

    def real(self) -> NDArray[np.float32]:
        """The numbers that the integers stand for."""
        shape = [1] * self.data.ndim
        shape[self.axis] = self.scales.size
        return self.data.astype(np.float32) * self.scales.reshape(shape)


@dataclass(frozen=True)
class Scheme:
    """Which nodes of a model compute on integers, and how. Nodes are known by their first output's name.

    Attributes:
        nodes: the nodes that compute on integers.
        grids: value name → the grid of an activation.
        weights: node → its integers, where they are not simply rounded.
        biases: node → a corrected bias, float32 [channels].
    """

    nodes: frozenset[str]
    grids: Mapping[str, Grid]
    weights: Mapping[str, IntegerWeight] = field(default_factory=dict)
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def _limits(signed: bool, bits: int) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _scale(scale: float) -> float:
    found = float(np.float32(scale))
    return found if found > LEAST_SCALE else 1.0
