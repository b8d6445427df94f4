"""What has to be done to a model before the peers take it; the same for all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx import version_converter
from onnxruntime.quantization.shape_inference import quant_pre_process

OLDEST_OPSET = 13  # of DequantizeLinear per channel


def preprocess(source: Path, target: Path) -> None:
    """What ONNX Runtime's documentation advises: infer shapes, fold constants, fuse BatchNormalization.

    NNCF is given the same: it stumbles over what this removes, such as Dropout. Symbolic shape inference is
    left out where it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        raised = Path(scratch, "raised.onnx")
        onnx.save(load(source), raised)
        try:
            quant_pre_process(raised, target)
        except Exception:  # it raises plain Exception for what it cannot infer
            quant_pre_process(raised, target, skip_symbolic_shape=True)


def load(path: Path) -> onnx.ModelProto:
    """The model, raised to the oldest opset in which quantization per channel can be said.

    Raising it is left undone where onnx's converter cannot do it.
    """
    model = onnx.load(path)
    version = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    if model.ir_version < 4:
        unlist_weights(model)
    if version >= OLDEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, OLDEST_OPSET)
    except RuntimeError:
        return model


def unlist_weights(model: onnx.ModelProto) -> None:
    """Remove the weights from the inputs, where IR 3 had to list them, and say IR 8."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for entry in [entry for entry in model.graph.input if entry.name in weights]:
        model.graph.input.remove(entry)
    model.ir_version = 8
