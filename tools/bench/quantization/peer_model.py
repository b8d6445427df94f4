"""What has to be done to a model before the peers can take it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import version_converter

OLDEST_OPSET = 13  # per-channel DequantizeLinear


def load(path: Path) -> onnx.ModelProto:
    """The model, raised to the oldest opset in which quantization per channel can be said.

    Raising it is left undone where onnx's converter cannot do it. Initializers are no inputs from IR 4 on.
    """
    model = onnx.load(path)
    version = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    if model.ir_version < 4:
        without_initializers_as_inputs(model)
    if version >= OLDEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, OLDEST_OPSET)
    except RuntimeError:
        return model


def without_initializers_as_inputs(model: onnx.ModelProto) -> None:
    """Unlist the weights, which IR 3 had to list, and say IR 8."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for entry in [entry for entry in model.graph.input if entry.name in weights]:
        model.graph.input.remove(entry)
    model.ir_version = 8
