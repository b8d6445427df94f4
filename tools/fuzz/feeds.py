"""Seeded feeds for a model, so that a saved model alone is enough to see its failure again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
Feeds = dict[str, Array]

SIZES: tuple[dict[str, int], ...] = ({"N": 2, "M": 3}, {"N": 1, "M": 1}, {"N": 5, "M": 2})
"""Dims for which every drawn model runs."""
MORE_SIZES: tuple[dict[str, int], ...] = ({"N": 3, "M": 7}, {"N": 0, "M": 2}, {"N": 4, "M": 4})
"""Further dims, for which a model may fail; then there is nothing to compare."""


def draw(elem_type: int, dims: Sequence[int], seed: int) -> Array:
    """Random numbers that keep products small; integers are small enough for an index or a size."""
    rng = np.random.default_rng([elem_type, *dims, seed])
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    if dtype.kind == "b":
        return np.asarray(rng.random(dims) < 0.5)
    if dtype.kind in "iu":
        return np.asarray(rng.integers(0, 4, dims)).astype(dtype)
    return np.asarray(rng.normal(size=dims)).astype(dtype)


def of_model(model: onnx.ModelProto) -> list[Feeds]:
    """One feed for each assignment of sizes; with the last one, defaults of inputs are overridden, too."""
    defaults = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    required = [info for info in model.graph.input if info.name not in defaults]
    overridable = [info.name for info in model.graph.input if info.name in defaults]
    feeds = [
        {info.name: of_input(info, sizes, seed + i) for i, info in enumerate(required)}
        for seed, sizes in enumerate((*SIZES, *MORE_SIZES))
    ]
    feeds[-1] |= {name: _other(defaults[name]) for name in overridable}
    return feeds


def of_input(info: onnx.ValueInfoProto, sizes: dict[str, int], seed: int) -> Array:
    """A draw for an input; unnamed dims are 2."""
    kind = info.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param, 2) for d in kind.shape.dim]
    return draw(kind.elem_type, dims, seed)


def _other(default: Array) -> Array:
    return np.asarray(~default if default.dtype.kind == "b" else default * 2).astype(default.dtype)


def kinds(model: onnx.ModelProto) -> set[str]:
    """The dtypes of inputs and weights, and those that a Cast makes."""
    found = {info.type.tensor_type.elem_type for info in model.graph.input}
    stack = [model.graph.node, *(function.node for function in model.functions)]
    for nodes in stack:
        for attribute in (attribute for node in nodes for attribute in node.attribute):
            found |= {attribute.i} if attribute.name == "to" else set()
            found |= {attribute.t.data_type} if attribute.HasField("t") else set()
            stack += [attribute.g.node] if attribute.HasField("g") else []
    found |= {tensor.data_type for tensor in model.graph.initializer}
    return {str(helper.tensor_dtype_to_np_dtype(elem_type)) for elem_type in found}
