"""A model whose weights are rounded to half precision, kept as float32: the error that storage may have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

from tools.bench.judge import graphs
from tools.bench.quantization.task import Array

HALVES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
FLOATS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
}


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The initializers and the tensors of Constant nodes, those of subgraphs and functions included."""
    for graph in graphs(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
        for node in graph.node:
            if node.op_type == "Constant":
                yield from (entry.t for entry in node.attribute if entry.name == "value")


def float_bytes(path: Path) -> int:
    """Bytes of the float32, float16 and bfloat16 weights of a model."""
    found = tensors(onnx.load(path, load_external_data=False))
    return sum(FLOATS.get(tensor.data_type, 0) * int(np.prod(tensor.dims)) for tensor in found)


def write_rounded(source: Path, target: Path, half: str) -> None:
    """Write the model with each float32 weight rounded to `half`, unless it leaves the range."""
    model = onnx.load(source)
    for tensor in tensors(model):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            exact = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(rounded(exact, HALVES[half]), tensor.name))
    onnx.save(model, target)


def rounded(values: Array, half: np.dtype[np.generic]) -> Array:
    """The values rounded, or as they are if one would become infinite."""
    with np.errstate(over="ignore"):
        found = values.astype(half).astype(np.float32)
    return found if np.isfinite(found).all() or not np.isfinite(values).all() else values
