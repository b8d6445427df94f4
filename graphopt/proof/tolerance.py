"""How far a result may be from the original's: within a few times the original's own rounding noise.

The noise of an output is what the original itself shows, at the same optimization level of ONNX Runtime,
when its inputs move by one unit in the last place (or, if none is a float, between two levels). It is kept
relative to the element's magnitude, and relative to the largest element; the smaller bound counts, so that
neither a huge element excuses a wrong small one nor a near-zero one a wrong large one. For element rᵢ of
output r

    toleranceᵢ = 8 · min(a · max|r|, b · max(|rᵢ|, m)) + 4 ε · max(|rᵢ|, m)

with a = max|dᵢ| / max|r| and b = maxᵢ |dᵢ| / max(|rᵢ|, m) over all samples, d the noise, m the typical
magnitude (the median of what is not zero, at least 1e-6) and ε the resolution of the output's type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.values import BFLOAT16, BOOL, FLOATING, STRING, Tensor, Value, dtype_of

Array = NDArray[Any]

SPREAD_FACTOR = 8
FLOOR_FACTOR = 4
SMALLEST_SCALE = 1e-6
WEAK = 0.01
# Four steps of an 8-bit float are as large as the number itself: those are judged like integers.
_ROUNDED = frozenset(elem_type for elem_type in FLOATING if elem_type <= BFLOAT16)


@dataclass
class Spread:
    """The noise of one output at one level, pooled over samples.

    Attributes:
        of_largest: largest noise relative to the largest element (``a`` above).
        of_element: largest noise relative to its element's magnitude (``b`` above).
        flips: most elements that differed at all; what is no float of 16 bits or more may differ that often.
        flip_size: the largest of these differences, for numbers.
        specials: most elements whose being NaN or Inf differed.
        unstable: the original gave different shapes, or different values on the same input.
    """

    of_largest: float = 0.0
    of_element: float = 0.0
    flips: int = 0
    flip_size: float = 0.0
    specials: int = 0
    unstable: bool = False

    @property
    def allowed(self) -> float:
        """The largest error that this noise excuses, relative to the output's largest element."""
        return SPREAD_FACTOR * self.of_largest

    def observe(self, reference: Tensor, variant: Tensor) -> None:
        """Take in the difference between two ways of computing the original's output."""
        if reference.shape != variant.shape or reference.elem_type != variant.elem_type:
            self.unstable = True
        elif reference.elem_type in _ROUNDED:
            self._observe_floats(numbers(reference), numbers(variant))
        else:
            flips, size = differing(reference, variant)
            self.flips, self.flip_size = max(self.flips, flips), max(self.flip_size, size)

    def _observe_floats(self, reference: Array, variant: Array) -> None:
        distance, specials = distances(reference, variant)
        self.specials = max(self.specials, specials)
        if distance.size and (noise := float(distance.max())):
            scale = magnitudes(reference)
            self.of_element = max(self.of_element, float((distance / scale).max()))
            self.of_largest = max(self.of_largest, noise / float(scale.max()))


@dataclass(frozen=True)
class Judgement:
    """The worst element of one output in one sample, and why it is wrong (empty: it is not)."""

    error: float = 0.0
    tolerance: float = 0.0
    wrong: str = ""


def judge(spread: Spread, reference: Tensor, candidate: Tensor) -> Judgement:
    """Compare an output of the candidate with the original's, within the noise."""
    if candidate.elem_type != reference.elem_type:
        return Judgement(wrong=f"type {_type(candidate)} instead of {_type(reference)}")
    if spread.unstable:
        return Judgement()
    if candidate.shape != reference.shape:
        return Judgement(wrong=f"shape {list(candidate.shape)} instead of {list(reference.shape)}")
    if reference.elem_type in _ROUNDED:
        return _judge_floats(spread, reference, candidate)
    flips, size = differing(reference, candidate)
    allowed = flips <= spread.flips and size <= spread.flip_size
    wrong = "" if allowed else f"{flips} of {reference.size} elements differ"
    return Judgement(size, spread.flip_size, wrong)


def _judge_floats(spread: Spread, reference: Tensor, candidate: Tensor) -> Judgement:
    expected = numbers(reference)
    distance, specials = distances(expected, numbers(candidate))
    if specials > spread.specials:
        return Judgement(wrong=f"{specials} of {expected.size} elements differ in being NaN or Inf")
    if not distance.size:
        return Judgement()
    scale = magnitudes(expected)
    noise = np.minimum(spread.of_largest * scale.max(), spread.of_element * scale)
    tolerance = SPREAD_FACTOR * noise + FLOOR_FACTOR * resolution(reference.elem_type) * scale
    worst = int((distance / tolerance).argmax())
    error, allowed = float(distance.flat[worst]), float(tolerance.flat[worst])
    if error <= allowed:
        return Judgement(error, allowed)
    count = int((distance > tolerance).sum())
    told = f"{count} of {distance.size} elements off by up to {error:.2g} (tolerance {allowed:.2g})"
    return Judgement(error, allowed, told)


def numbers(tensor: Tensor) -> Array:
    """The elements as float64 or complex128, flat."""
    array = tensor.numpy().reshape(-1)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def distances(reference: Array, other: Array) -> tuple[Array, int]:
    """|reference − other| where both are finite (elsewhere 0), and how many others differ."""
    finite = np.isfinite(reference) & np.isfinite(other)
    same = (reference == other) | (np.isnan(reference) & np.isnan(other))
    distance = np.zeros(reference.shape)
    distance[finite] = np.abs(reference[finite] - other[finite])
    return distance, int((~finite & ~same).sum())


def magnitudes(reference: Array) -> Array:
    """max(|rᵢ|, m) per element; not finite ones count as typical."""
    size = np.abs(reference)
    size[~np.isfinite(size)] = 0
    visible = size[size > 0]
    typical = float(np.median(visible)) if visible.size else 0.0
    scale: Array = np.maximum(size, max(typical, SMALLEST_SCALE))
    return scale


def differing(reference: Tensor, other: Tensor) -> tuple[int, float]:
    """How many elements differ, and by how much at most (booleans and strings: 1)."""
    a, b = reference.numpy().reshape(-1), other.numpy().reshape(-1)
    unequal = a != b
    if reference.elem_type in FLOATING:
        a, b = a.astype(np.float32), b.astype(np.float32)
        unequal &= ~(np.isnan(a) & np.isnan(b))
    count = int(np.count_nonzero(unequal))
    if not count or reference.elem_type in {BOOL, STRING}:
        return count, float(count > 0)
    return count, float(np.abs(a[unequal].astype(np.float64) - b[unequal].astype(np.float64)).max())


def resolution(elem_type: int) -> float:
    """The gap between 1 and the next number of a floating type."""
    dtype = dtype_of(elem_type)
    if elem_type < BFLOAT16:  # the others are of ml_dtypes, some of which also say kind "f"
        return float(np.finfo(dtype).eps)
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def leaves(name: str, value: Value) -> Iterator[tuple[str, Tensor]]:
    """The tensors inside a value; sequences and maps become one tensor per item, an empty optional none."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(f"{name}[{index}]", item)
    elif isinstance(value, dict):
        yield f"{name}.keys", Tensor.of(np.array(list(value)))
        yield f"{name}.values", Tensor.of(np.array(list(value.values())))


def _type(tensor: Tensor) -> str:
    return "string" if tensor.elem_type == STRING else dtype_of(tensor.elem_type).name
