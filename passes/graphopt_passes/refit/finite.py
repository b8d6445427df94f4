"""Constants that hold NaN or infinity: no error can be told of a layer that has one, so it is left alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.storage.weights import slices

_AT_ONCE = 1 << 20  # numbers


def nonfinite(values: Iterable[ir.Value]) -> str:
    """Why what reads these values is left alone: the first constant that is not finite; empty if all are."""
    for value in values:
        tensor = g.constant(value)
        if tensor is not None and not _is_finite(tensor):
            return f"the weight '{value.name}' holds NaN or infinity"
    return ""


def _is_finite(tensor: ir.TensorProtocol) -> bool:
    """Whether no number is NaN or infinite; a part is read at a time."""
    if not tensor.dtype.is_floating_point():
        return True
    if not tensor.shape.numpy():
        return bool(np.isfinite(tensor.numpy()))
    bounds = ((part.min(initial=0), part.max(initial=0)) for _, part in slices(tensor, _AT_ONCE))
    return all(np.isfinite(low) and np.isfinite(high) for low, high in bounds)
