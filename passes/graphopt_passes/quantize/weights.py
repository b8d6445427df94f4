"""Weights as int8: one scale per output channel, integers by rounding to nearest.

The scale of a channel is its largest |w| / 127, or fitted: smaller, so that the largest weights saturate
and the others lie on a finer grid, or a little larger, where few weights happen to lie closer to the grid.
The error of the layer's output decides: for independent inputs E(Δy²) = Σₖ E(xₖ²)·Δwₖ², so each column
counts by its energy E(xₖ²), the diagonal of XᵀX. Every channel searches on a grid of its own (a search over
clips as of AWQ, Lin et al. 2023; the weighting by the Hessian's diagonal as of Nagel et al. 2020, eq. 8).

A weight is seen as rows [channels, columns]: Conv [M, C/g, kH, kW] with axis 0 has C/g·kH·kW columns, in
this order; MatMul [K, N] with axis 1 has K; Gemm as MatMul, and with transB axis 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.quantize.scheme import LEAST_SCALE, Array, IntegerWeight

Floats = NDArray[np.float32]

_BLOCK = 1 << 18  # elements that are worked on at once: they stay in the cache, and a huge weight in its file
_DAMP = 1e-4  # part of the mean energy that every column has: calibration does not see all that is to come
_BIAS_LIMIT = 2.0**30  # half of what int32 holds; the other half is for the sum of products
_LEAST_STEP = 1e-36  # of an accumulator; float32 loses precision below 1.2e-38


def limit(bits: int = 8) -> int:
    """The largest integer of a symmetric weight, 127 for 8 bits; the least is its negative."""
    return (1 << (bits - 1)) - 1


def rows(w: Array, axis: int) -> Array:
    """A weight as [channels, columns]; a view where numpy can."""
    moved = np.moveaxis(w, axis, 0)
    return moved.reshape(len(moved), -1)


def from_rows(matrix: Array, like: Array, axis: int) -> Array:
    """Rows [channels, columns] in the shape of the weight that they come from, contiguous."""
    moved = np.moveaxis(like, axis, 0)
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved.shape), 0, axis))


def rounded(w: Array, axis: int, bits: int = 8) -> IntegerWeight:
    """The weight on scales that reach the largest |w| of each channel.

    Args:
        w: floating point, of any rank; read block by block.
        axis: the output channels' axis.
        bits: 8, or 7 where products of u8 and s8 saturate.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    return on_scales(w, widest(w, axis, bits), axis, bits)


def clipped(w: Array, axis: int, energy: Array | None = None, bits: int = 8) -> IntegerWeight:
    """The weight on scales that minimize Σₖ energyₖ·(Q(w)ₖ − wₖ)² per channel, over a grid of clips.

    Args:
        w: floating point, of any rank; read block by block.
        axis: the output channels' axis.
        energy: how much each column counts: [columns], or [groups, columns] where a Conv has groups;
            ``None`` is 1 for all. Its unit does not matter.
        bits: 8, or 7 where products of u8 and s8 saturate.

    Raises:
        ValueError: the weight holds NaN or infinity, or the energy does not fit it.
    """
    scales = widest(w, axis, bits)
    weights = _energies(energy, scales.size, w.size // max(scales.size, 1))
    for part, block in _blocks(w, axis):
        group = weights[part] if len(weights) > 1 else weights
        scales[part] *= _best_ratio(block, scales[part], group, limit(bits))
    return on_scales(w, scales, axis, bits)


def on_scales(w: Array, scales: Array, axis: int, bits: int = 8) -> IntegerWeight:
    """The weight rounded to nearest on given scales: float32 [channels], or [1] for all."""
    scales = np.asarray(scales, np.float32)
    data = np.empty(w.shape, np.int8)
    moved = np.moveaxis(data, axis, 0)
    for part, block in _blocks(w, axis):
        own = scales[part] if scales.size > 1 else scales
        moved[part] = _integers(block, own[:, None], limit(bits)).reshape(moved[part].shape)
    return IntegerWeight(data, scales, axis)


def widest(w: Array, axis: int, bits: int = 8) -> Floats:
    """The scales that reach the largest |w| of each channel, float32 [channels].

    A channel of zeros gets the largest scale of the others: any would do for its weights, but the step of
    its bias is made of it.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    largest = np.zeros(w.shape[axis], np.float32)
    for part, block in _blocks(w, axis):
        largest[part] = np.abs(block).max(axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        raise ValueError("the weight holds NaN or infinity")
    scales = largest / np.float32(limit(bits))
    usable = scales > LEAST_SCALE
    scales[~usable] = scales.max(initial=0.0) if usable.any() else 1.0
    return scales


def raise_scales(scales: Array, input_scale: float, bias: Array | None) -> Floats:
    """Weight scales that are large enough for the bias to be int32 in steps of ``input_scale · scale``.

    Args:
        scales: of the weight, [channels] or [1].
        input_scale: of the activation.
        bias: floating point [channels], or ``None``.

    Returns:
        float32 of the same shape; the weight must be rounded anew where they differ.
    """
    least = np.full(scales.shape, _LEAST_STEP / input_scale)
    if bias is not None:
        size = np.abs(np.asarray(bias, np.float64)) / (input_scale * _BIAS_LIMIT)
        least = np.maximum(least, size if size.size == scales.size else size.max(initial=0.0))
    return np.maximum(np.asarray(scales, np.float32), least.astype(np.float32))


def _blocks(w: Array, axis: int) -> Iterator[tuple[slice, Floats]]:
    """Slices of channels with their rows, float32 [channels, columns]."""
    moved = np.moveaxis(w, axis, 0)
    columns = max(w.size // max(len(moved), 1), 1)
    step = max(_BLOCK // columns, 1)
    for start in range(0, len(moved), step):
        part = slice(start, min(start + step, len(moved)))
        yield part, np.asarray(moved[part], np.float32).reshape(part.stop - start, -1)


def _energies(energy: Array | None, channels: int, columns: int) -> Floats:
    """Energies in units of their mean, float32 [1 or channels, columns]."""
    if energy is None:
        return np.ones((1, columns), np.float32)
    table = np.atleast_2d(np.asarray(energy, np.float64))
    if table.shape[1] != columns or channels % len(table):
        raise ValueError(f"energy of shape {np.shape(energy)} for {channels} channels of {columns} columns")
    mean = table.sum(axis=1, keepdims=True) / max(columns, 1)
    table = np.divide(table, mean, out=np.ones_like(table), where=mean > 0) + _DAMP
    own = np.repeat(table, channels // len(table), axis=0) if len(table) > 1 else table
    return own.astype(np.float32)


def _ratios(columns: int) -> Floats:
    """Factors of the widest scale to try: 1 first, clips in steps of 5 %, and many around 1 for few columns.

    Where the errors of few columns are summed up, their sum varies from step to step, and the best of many
    steps is far below the mean: half of it for the nine weights of a depthwise Conv.
    """
    near = np.linspace(0.97, 1.25, min(512, (1 << 16) // max(columns, 128)))
    return np.concatenate([np.geomspace(1.0, 0.05, 60), near]).astype(np.float32)


def _best_ratio(block: Floats, scales: Floats, energy: Floats, most: int) -> Floats:
    units = block / scales[:, None]
    ratios = _ratios(block.shape[1])
    errors = np.stack([_error(units, ratio, energy, most) for ratio in ratios])
    return np.asarray(ratios[errors.argmin(axis=0)])


def _error(units: Floats, ratio: np.float32, energy: Floats, most: int) -> Floats:
    """Σₖ energyₖ·(Q(w)ₖ − wₖ)² per channel, for weights in units of their scale, on a step of ``ratio``."""
    wrong = _integers(units, ratio, most) * ratio - units
    weighted = np.broadcast_to(energy, wrong.shape)
    return np.asarray(np.einsum("ck,ck,ck->c", wrong, wrong, weighted))


def _integers(block: Floats, step: Floats | np.float32, most: int) -> Floats:
    return np.asarray(np.clip(np.rint(block / step), -most, most))
