"""Zeros that integers are divided by: as constants they fail at loading, even in a branch not taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g


def divided_by_zero(value: ir.Value, array: Callable[[], NDArray[Any]]) -> str | None:
    """Why a value must not become a constant of these elements, or ``None`` when it may.

    Args:
        value: of any shape.
        array: gives its elements; called only for divisors.
    """
    divides = any(use.idx == 1 and g.is_op(use.node, "Div") for use in value.uses())
    if not divides:
        return None
    elements = array()
    if elements.dtype.kind not in "iu" or elements.all():
        return None
    return f"as a constant, the divisor '{value.name}' with a 0 fails when the model is loaded"
