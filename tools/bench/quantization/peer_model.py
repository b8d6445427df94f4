"""What has to be done to a model before the peers take it; the same for all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxscript.optimizer
from onnx import version_converter
from onnxruntime.quantization.shape_inference import quant_pre_process

OLDEST_OPSET = 13  # of DequantizeLinear per channel


def preprocess(source: Path, target: Path) -> None:
    """Fold with onnxscript, then do what ONNX Runtime's documentation advises (shapes, basic fusions).

    Without the former, constants that a model computes hide BatchNormalizations from all peers, and NNCF
    stumbles over Casts and Dropouts. Each step is left out where it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folded = Path(scratch, "folded.onnx")
        onnx.save(fold(load(source)), folded)
        try:
            quant_pre_process(folded, target)
        except Exception:  # it raises plain Exception for what it cannot infer
            quant_pre_process(folded, target, skip_symbolic_shape=True)


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as onnxscript's optimizer leaves it, which torch's exporter also runs by default."""
    try:
        folded = onnxscript.optimizer.optimize(model)
        onnx.checker.check_model(folded)  # it may write attributes that the opset lacks
    except Exception:  # it runs passes that raise whatever they meet
        return model
    return folded


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
