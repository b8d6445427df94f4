"""What tests of the axes share: weights drawn by their names, and one cut held against the oracle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper, parser

from graphopt.legacy import to_ir4
from graphopt.model import Model
from graphopt_passes.axes import Analysis, groups
from tools.channels import oracle

TOLERANCE = 1e-5
_MADE = ("W_", "V_", "P_", "Z_", "I_")


def built(text: str, sizes: Mapping[str, int], seed: int) -> onnx.ModelProto:
    """A model from text; operands that are named W_c_d are drawn, of the shape [c, d] by ``sizes``.

    W and V are normal, P are small and positive (scales), Z are zero points, I are axes.
    """
    made, rng = parser.parse_model(text), np.random.default_rng(seed)
    names = {name for graph in _graphs(made.graph) for node in graph.node for name in node.input}
    drawn = sorted(name for name in names if name.startswith(_MADE))
    made.graph.initializer.extend(operand(name, sizes, rng) for name in drawn)
    onnx.checker.check_model(made)
    return made


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [one.g for node in graph.node for one in node.attribute if one.HasField("g")]
    return [graph, *(found for one in inner for found in _graphs(one))]


def operand(name: str, sizes: Mapping[str, int], rng: np.random.Generator) -> onnx.TensorProto:
    if name.startswith("I_"):
        axes = {"I_spatial": [2, 3], "I_channels": [1]}[name]
        return numpy_helper.from_array(np.array(axes, np.int64), name)
    shape = [sizes.get(part, 1) for part in name.split("_")[1:]]
    if name.startswith("Z_"):
        return numpy_helper.from_array(np.full(shape, 7, np.uint8), name)
    drawn = rng.standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(np.abs(drawn) * 0.01 + 0.01 if name.startswith("P_") else drawn, name)


def cut(proto: onnx.ModelProto, removed: float, seed: int) -> tuple[Analysis, oracle.Facts]:
    """Remove random channels; inputs are normal. The analysis, and how far the result is from the oracle."""
    whole = Model.of(proto)
    to_ir4(whole)
    analysis, rng = groups(whole), np.random.default_rng(seed)
    feeds = {value.name: _drawn(value, rng) for value in proto.graph.input}
    return analysis, oracle.check(whole, oracle.drawn(analysis, removed, seed), feeds)


def _drawn(value: onnx.ValueInfoProto, rng: np.random.Generator) -> np.ndarray:
    kind = value.type.tensor_type
    numbers = rng.standard_normal([dim.dim_value for dim in kind.shape.dim])
    return np.asarray(numbers).astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
