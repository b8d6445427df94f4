"""Biases that take up the mean error of a quantized layer, and biases as integers.

Rounded weights and inputs move the mean of a layer's output, and every layer behind inherits it: for
y = W·x and ŷ = Ŵ·x̂ the bias E(y) − E(ŷ) brings it back (Nagel et al. 2019, §4.2). The means are taken per
output channel over samples and positions: from the outputs of both models, or from the means of the inputs,
which need no run of the quantized layer. Corrected in the order of the graph, with x̂ as the layers before
leave it, each layer also makes up for those.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.quantize.scheme import Array

_MOST = 2**31 - 1


def corrected_bias(bias: Array | None, float_mean: Array, quantized_mean: Array) -> NDArray[np.float32]:
    """The bias with which the quantized layer's output has the float layer's mean.

    Args:
        bias: of the float model, [channels], or ``None``.
        float_mean: mean output of the float layer per channel, before any activation function.
        quantized_mean: the same of the quantized layer with the old bias; a channel in which one is not
            finite keeps its bias.

    Returns:
        float32 [channels].
    """
    missing = np.asarray(float_mean, np.float64) - np.asarray(quantized_mean, np.float64)
    old = np.zeros(missing.shape) if bias is None else np.asarray(bias, np.float64)
    return (old + np.where(np.isfinite(missing), missing, 0.0)).astype(np.float32)


def mean_shift(
    w: Array, rounded: Array, mean: Array, rounded_mean: Array | None = None
) -> NDArray[np.float64]:
    """E(ŷ) − E(y) of a layer without a run of it: Ŵ·E(x̂) − W·E(x), float64 [channels].

    Args:
        w: the weight as rows [channels, columns].
        rounded: the numbers that its integers stand for, of the same shape.
        mean: of the input, for each column of the weight: [columns], or [groups, columns].
        rounded_mean: of the quantized model's input; ``None`` for the same.
    """
    means = _per_channel(mean, w)
    rounded_means = means if rounded_mean is None else _per_channel(rounded_mean, w)
    shift = rounded.astype(np.float64) * rounded_means - w.astype(np.float64) * means
    return np.asarray(shift.sum(axis=1))


def integer_bias(bias: Array, input_scale: float, scales: Array) -> NDArray[np.int32]:
    """The bias in steps of the accumulator, ``input_scale`` · ``scales``: int32 [channels].

    Args:
        bias: floating point [channels].
        input_scale: of the activation.
        scales: of the weight, [channels] or [1].

    Raises:
        ValueError: it exceeds int32; :func:`graphopt_passes.quantize.weights.raise_scales` helps.
    """
    steps = np.float64(np.float32(input_scale)) * np.asarray(scales, np.float64)
    whole = np.rint(np.asarray(bias, np.float64) / steps)
    if not (np.abs(whole) <= _MOST).all():
        raise ValueError(f"a bias of {np.abs(bias).max():.3g} in steps of {steps.min():.3g} exceeds int32")
    return whole.astype(np.int32)


def _per_channel(mean: Array, w: Array) -> NDArray[np.float64]:
    """Means of the columns for each channel, [1 or channels, columns]."""
    table = np.atleast_2d(np.asarray(mean, np.float64))
    return np.repeat(table, len(w) // len(table), axis=0) if len(table) > 1 else table
