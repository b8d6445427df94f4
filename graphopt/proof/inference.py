"""What onnx infers of types and shapes, and whether it contradicts what a model states.

A file may state a wrong shape as long as nobody can tell: an output of two dims, made by a Reshape whose
target is computed. A rewrite that makes the target known would let checkers refuse the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from graphopt.model import Model

_LONGEST = 200


def contradiction(model: Model, *, data: bool = False) -> str:
    """What strict inference finds wrong in a model; empty if nothing.

    Args:
        model: without its weights, which need not be in memory.
        data: follow the contents of small tensors as well, which onnx's checker does not.
    """
    try:
        onnx.shape_inference.infer_shapes(model.skeleton(), check_type=True, strict_mode=True, data_prop=data)
    except onnx.shape_inference.InferenceError as error:
        return " ".join(str(error).split())[:_LONGEST]
    return ""


def infers(model: Model) -> bool:
    """Whether nothing is wrong in a model, with its small tensors followed."""
    return not contradiction(model, data=True)
