"""Why ONNX Runtime did not fuse a node between DequantizeLinear and QuantizeLinear.

The rules that it is known to have; they explain, and do not decide: that a node did not fuse is read from the
graph that runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.proof.executed import HEAVY

EQUAL_GRIDS = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Slice", "Flatten", "Gather", "GatherElements", "Split", "Resize"}
    | {"ReduceMax", "ReduceMin", "DepthToSpace", "Squeeze", "Unsqueeze", "Expand", "Tile"}
)
"""Operators that run on integers only if their grid is the same before and after."""

_BIAS_TOLERANCE = 0.01
_FLOAT_BIAS_OPSET = 13  # from here on the runtime quantizes a float bias by itself
_SATURATES = ("Relu", "Clip")


def reason(node: ir.Node, opset: int) -> str:
    """The first rule that a node of the model breaks, in words."""
    return next(_reasons(node, opset), "this ONNX Runtime has no integer kernel for it")


def _reasons(node: ir.Node, opset: int) -> Iterator[str]:
    if node.op_type == "ConvTranspose":
        yield "ONNX Runtime has no integer ConvTranspose"
    yield from _types(node)
    if node.op_type in EQUAL_GRIDS:
        yield from _moving(node, opset)
    if node.op_type in HEAVY:
        yield from _weight(node)
        yield from _bias(node, opset)
    yield from _readers(node)
    beside = (_grid_before(node.inputs[0]), _grid_after(node.outputs[0]))
    if any(grid is not None and grid.dtype == "int8" for grid in beside):
        yield "its activations are int8, of which ONNX Runtime turns some to uint8 on x64: choose uint8"


def _types(node: ir.Node) -> Iterator[str]:
    for value in node.inputs:
        grid = _grid_before(value)
        if grid is not None and grid.dtype not in ("int8", "uint8", "int32"):
            yield f"its input is {grid.dtype}, and only 8-bit integers have kernels"


def _moving(node: ir.Node, opset: int) -> Iterator[str]:
    before, after = _grid_before(node.inputs[0]), _grid_after(node.outputs[0])
    if node.op_type == "MaxPool" and opset < _FLOAT_BIAS_OPSET:
        yield f"MaxPool does not fuse at opset {opset}"
    if before is not None and after is not None:
        if not (before.explicit and after.explicit):
            yield "a zero point is omitted beside it"
        if before != after:
            yield "the grids before and after it differ"


def _weight(node: ir.Node) -> Iterator[str]:
    weight = node.inputs[1]
    grid = _grid_before(weight)
    rank = g.rank(weight.producer().inputs[0]) if grid is not None else None  # type: ignore[union-attr]
    if grid is None or rank is None or grid.scale.size == 1:
        return
    transposed = bool(g.attribute(node, "transB", 0))
    expected = 0 if node.op_type == "Conv" or transposed else rank - 1
    if grid.axis % rank != expected:
        yield f"the scales of its weight lie along axis {grid.axis}, not {expected}"


def _bias(node: ir.Node, opset: int) -> Iterator[str]:
    if node.op_type == "Gemm" and (
        g.attribute(node, "alpha", 1.0) != 1 or g.attribute(node, "beta", 1.0) != 1
    ):
        yield "its alpha or beta is not 1"
    bias = _bias_of(node)
    if bias is None:
        return
    grid = _grid_before(bias)
    if grid is not None:
        product = [_grid_before(value) for value in node.inputs[:2]]
        if all(found is not None for found in product):
            scale = np.multiply(*(found.scale for found in product if found is not None))
            if not np.allclose(grid.scale, scale, rtol=_BIAS_TOLERANCE, atol=0):
                yield "the scale of its bias is not that of input times weight"
    elif opset < _FLOAT_BIAS_OPSET:
        yield f"its bias is float, at opset {opset}"
    elif node.op_type != "Conv" and _grid_after(_last(node)) is None:
        yield "its bias is float and its output is not quantized"


def _bias_of(node: ir.Node) -> ir.Value | None:
    """The third input, or what an Add adds that the runtime takes for a MatMul's bias."""
    if node.op_type != "MatMul":
        return node.inputs[2] if len(node.inputs) > 2 else None
    readers = list(node.outputs[0].uses())
    if len(readers) != 1 or not g.is_op(readers[0].node, "Add"):
        return None
    other = readers[0].node.inputs[1 - readers[0].idx]
    constant = g.constant(other) is not None or _grid_before(other) is not None
    return other if constant else None


def _readers(node: ir.Node) -> Iterator[str]:
    """What stands between a node and the QuantizeLinear that it needs."""
    value, saturates = node.outputs[0], None
    while True:
        readers = [use.node for use in value.uses()]
        whose = "its output" if saturates is None else f"its {saturates.op_type}"
        if value.is_graph_output():
            yield f"{whose} is a graph output"
        if not readers:
            return
        if len(readers) > 1:
            yield f"{whose} has {len(readers)} readers: {', '.join(map(g.label, readers))}"
        if g.is_op(readers[0], "QuantizeLinear"):
            break
        if saturates is not None or not g.is_op(readers[0], *_SATURATES):
            yield f"{whose} goes to {g.label(readers[0])} and not to QuantizeLinear"
            return
        saturates = readers[0]
        value = saturates.outputs[0]
    grid = _grid_after(value)
    if saturates is not None and grid is not None and not _inside(grid, saturates):
        yield f"the grid behind its {saturates.op_type} reaches beyond what that lets through"


def _inside(grid: _Grid, clip: ir.Node) -> bool:
    low, high = 0.0, np.inf
    if clip.op_type == "Clip":
        bounds = [g.array(value) for value in clip.inputs[1:]] + [None, None]
        low = -np.inf if bounds[0] is None else float(bounds[0])
        high = np.inf if bounds[1] is None else float(bounds[1])
    slack = 0.5 * float(grid.scale.max())  # less than a step rounds to the bound
    return grid.low >= low - slack and grid.high <= high + slack


def _last(node: ir.Node) -> ir.Value:
    """The value behind a MatMul's bias, else the node's output."""
    readers = [use.node for use in node.outputs[0].uses()]
    biased = node.op_type == "MatMul" and len(readers) == 1 and g.is_op(readers[0], "Add")
    return readers[0].outputs[0] if biased else node.outputs[0]


@dataclass(frozen=True, eq=False)
class _Grid:
    """What a Q or DQ says: scales, zero points, and whether the latter are written out."""

    scale: np.ndarray
    zero: np.ndarray
    axis: int
    explicit: bool

    @property
    def dtype(self) -> str:
        return str(self.zero.dtype)

    @property
    def low(self) -> float:
        return float((np.iinfo(self.zero.dtype).min - self.zero.astype(float)).max() * self.scale.max())

    @property
    def high(self) -> float:
        return float((np.iinfo(self.zero.dtype).max - self.zero.astype(float)).min() * self.scale.max())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Grid):
            return NotImplemented
        pairs = ((self.scale, other.scale), (self.zero, other.zero))
        return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


def _grid_before(value: ir.Value | None) -> _Grid | None:
    producer = None if value is None else value.producer()
    return _grid(producer) if producer is not None and g.is_op(producer, "DequantizeLinear") else None


def _grid_after(value: ir.Value) -> _Grid | None:
    readers = [use.node for use in value.uses() if g.is_op(use.node, "QuantizeLinear")]
    return _grid(readers[0]) if readers else None


def _grid(node: ir.Node) -> _Grid | None:
    scale = g.array(node.inputs[1])
    written = node.inputs[2] if len(node.inputs) > 2 else None
    zero = np.zeros((), np.uint8) if written is None else g.array(written)
    if scale is None or zero is None:
        return None
    return _Grid(np.asarray(scale), np.asarray(zero), int(g.attribute(node, "axis", 1)), written is not None)
