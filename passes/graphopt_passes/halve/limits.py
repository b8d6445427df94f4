"""What a half type can hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from graphopt_passes.halve.signatures import HALVES

Array = NDArray[Any]
_BLOCK = 1 << 20  # elements that are rounded at once


@dataclass(frozen=True)
class Limits:
    """The numbers of a half type.

    Attributes:
        name: ``float16`` or ``bfloat16``.
        largest: the largest finite number.
        least: the least positive number with all its digits.
        terms: how many equal terms a sum of halves takes before it stops growing.
    """

    name: str
    largest: float
    least: float
    terms: int

    def rounded(self, data: Array) -> Array:
        """Numbers as the type holds them, as float32."""
        with np.errstate(over="ignore"):
            found: Array = data.astype(HALVES[self.name].numpy()).astype(np.float32)
        return found

    def error(self, data: Array) -> float:
        """‖c − half(c)‖ / ‖c‖ of finite numbers: 0 if all of them are 0, infinite if one overflows."""
        noise = signal = 0.0
        flat = data.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            block = block[np.isfinite(block)].astype(np.float64)
            noise += float(np.square(block - self.rounded(block.astype(np.float32))).sum())
            signal += float(np.square(block).sum())
        return float(np.sqrt(noise / signal)) if signal else 0.0


@cache
def limits(half: str) -> Limits:
    """The limits of ``float16`` or ``bfloat16``."""
    info = ml_dtypes.finfo(HALVES[half].numpy())  # type: ignore[no-untyped-call]
    return Limits(half, float(info.max), float(info.tiny), 2 ** (info.nmant + 1))
