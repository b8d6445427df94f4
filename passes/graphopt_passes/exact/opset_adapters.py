"""How a node of one version of its operator is written in the next, where types are not all that changed.

Each adapter is known by the operator and the opset that brought the new version, see ONNX's change log
(https://github.com/onnx/onnx/blob/main/docs/Changelog.md). Where the text of an old version leaves a choice,
the adapter keeps what ONNX Runtime computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import RefusedError

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.pipeline import Run

Array = np.ndarray[Any, Any]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Place:
    """A node that is taken to a newer opset, and the tools to do so."""

    node: ir.Node
    model: Model
    run: Run

    def require(self, condition: object, why_not: str) -> None:
        """Refuse to raise the model unless the condition holds.

        Raises:
            RefusedError: the condition is false.
        """
        if not condition:
            raise RefusedError(why_not)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value; ``KeyError`` if it is a parameter of the function around."""
        return g.attribute(self.node, name, default)

    def take(self, name: str, default: Any = None) -> Any:
        """An attribute's value, which the node loses; ``KeyError`` as for ``attribute``."""
        value = self.attribute(name, default)
        self.node.attributes.pop(name, None)
        return value

    def give(self, **attributes: int | str) -> None:
        """Set attributes."""
        self.node.attributes.update({a.name: a for a in ir.convenience.convert_attributes(attributes)})

    def dtype(self) -> np.dtype[Any]:
        """The element type of the first input."""
        found = self.run.shapes(self.model).dtype(self.node.inputs[0])
        self.require(found is not None, "its type is not known")
        assert found is not None
        return found.numpy()

    def feed(self, index: int, data: Array, name: str) -> None:
        """Give the node a constant as its input at a position behind all others."""
        base = f"{g.output_name(self.node)}_{name}"
        value = self.run.new_constant(self.model, self.node, data, base)
        self.node.resize_inputs(index + 1)
        self.node.replace_input_with(index, value)

    def insert(self, op_type: str, x: ir.Value, attributes: dict[str, int] | None = None) -> ir.Value:
        """The output of a new node before this one."""
        node = ir.Node("", op_type, [x], ir.convenience.convert_attributes(attributes or {}))
        node.outputs[0].name = self.fresh(op_type)
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, [node])
        return node.outputs[0]

    def fresh(self, suffix: str) -> str:
        """A new name of a value."""
        return self.run.names(self.model).fresh(f"{g.output_name(self.node)}_{suffix}")


Adapter = Callable[[Place], None]


def unchanged(at: Place) -> None:
    """What is new has a default that means what there was before."""


def as_input(name: str, index: int, *, scalar: bool = False) -> Adapter:
    """An attribute of integers becomes an input, one that is absent an omitted input."""

    def adapt(at: Place) -> None:
        value = at.take(name)
        if value is not None:
            data = np.array(value, np.int64)
            at.feed(index, data if scalar else data.reshape(-1), name)

    return adapt


def clip(at: Place) -> None:
    """Bounds become inputs of the type of what they bound."""
    bounds = at.take("min"), at.take("max")
    for index, (name, bound) in enumerate(zip(("min", "max"), bounds, strict=True), start=1):
        if bound is not None:
            at.feed(index, np.array(bound, at.dtype()), name)


def pad(at: Place) -> None:
    """Widths and value become inputs."""
    as_input("pads", 1)(at)
    at.feed(2, np.array(at.take("value", 0.0), at.dtype()), "value")


def slice_(at: Place) -> None:
    """Bounds become inputs."""
    for index, name in enumerate(("starts", "ends", "axes"), start=1):
        as_input(name, index)(at)


def dropout_mask(at: Place) -> None:
    """The mask becomes bool, so nobody may use it."""
    at.require(not _used(at.node.outputs[1:]), "its mask had another type before opset 10")


def dropout_ratio(at: Place) -> None:
    """The ratio, which matters to training only, becomes an input; the mask of all False is all True now."""
    at.require(not _used(at.node.outputs[1:]), "its mask meant the opposite before opset 12")
    ratio = at.take("ratio")
    if ratio is not None:
        at.feed(1, np.array(ratio, np.float32), "ratio")


def batch_normalization_spatial(at: Place) -> None:
    """Statistics are per channel, always."""
    at.require(at.take("spatial", 1) == 1, "its statistics are per element (spatial=0)")


def batch_normalization_training(at: Place) -> None:
    """Training is asked for by an attribute; before it was meant by more outputs."""
    at.require(not _used(at.node.outputs[1:]), "it returns statistics, as for training")
    at.node.resize_outputs(1)


def upsample_scales(at: Place) -> None:
    """Scales become an input."""
    at.feed(1, np.array(at.take("scales"), np.float32), "scales")


def upsample(at: Place) -> None:
    """Upsample is a Resize; its scales are at least 1."""
    at.node.op_type = "Resize"
    _as_before_opset_11(at, "floor")


def resize_coordinates(at: Place) -> None:
    """Coordinates are asymmetric; nearest means down when enlarging, and up when shrinking."""
    if "nearest_mode" in at.node.attributes:
        return  # it was an Upsample
    scales = g.array(at.node.inputs[1])
    nearest = at.attribute("mode", "nearest") == "nearest"
    at.require(not nearest or scales is not None, "whether it enlarges or shrinks is not known")
    shrinks = nearest and scales is not None and bool((scales < 1).any())
    at.require(not (shrinks and scales is not None and (scales > 1).any()), "it both enlarges and shrinks")
    _as_before_opset_11(at, "ceil" if shrinks else "floor")


def _as_before_opset_11(at: Place, nearest_mode: str) -> None:
    scales = at.node.inputs[1]
    at.give(coordinate_transformation_mode="asymmetric", nearest_mode=nearest_mode)
    at.feed(2, np.empty(0, np.float32), "scales")
    at.node.replace_input_with(1, at.node.inputs[2])  # the region of interest, which was required
    at.node.replace_input_with(2, scales)


def resize_modes(at: Place) -> None:
    """One way to count coordinates is gone."""
    mode = at.attribute("coordinate_transformation_mode", "half_pixel")
    at.require(mode != "tf_half_pixel_for_nn", f"its mode {mode} is gone since opset 13")


def scatter(at: Place) -> None:
    """Scatter got another name."""
    at.node.op_type = "ScatterElements"


def float_only(at: Place) -> None:
    """Integers are no longer taken."""
    at.require(ir.DataType.from_numpy(at.dtype()) in _FLOATS, "it takes no integers any more")


def along_axis(at: Place) -> None:
    """It was along all axes from one on, taken as one, and is along a single one.

    Of several axes whose sizes are all 1 but one, that one is meant. Others are joined to one and parted.
    """
    axis = int(at.attribute("axis", 1))
    dims = at.run.shapes(at.model).dims(at.node.inputs[0])
    if not dims:
        _flattened(at, axis)
        return
    long = [index for index in range(axis % len(dims), len(dims)) if dims[index] != 1]
    if len(long) <= 1:
        at.give(axis=long[0] if long else len(dims) - 1)
    else:
        _flattened(at, axis)


def _flattened(at: Place, axis: int) -> None:
    x, old = at.node.inputs[0], at.node.outputs[0]
    assert x is not None and at.node.graph is not None
    names = at.fresh("rows"), at.fresh("shape")
    at.node.replace_input_with(0, at.insert("Flatten", x, {"axis": axis}))
    at.give(axis=-1)
    shape = at.insert("Shape", x)
    reshape = ir.Node("", "Reshape", [None, shape])
    g.inherit(old, reshape.outputs[0])
    old.name = names[0]
    old.shape = None
    reshape.replace_input_with(0, old)
    at.node.graph.insert_after(at.node, [reshape])


def split_evenly(at: Place) -> None:
    """The number of equal parts is said."""
    if len(at.node.inputs) < 2 or at.node.inputs[1] is None:
        at.give(num_outputs=len(at.node.outputs))


def roi_align(at: Place) -> None:
    """The default of how coordinates are counted changed."""
    at.give(coordinate_transformation_mode="output_half_pixel")


def grid_sample(at: Place) -> None:
    """Modes got the names that they have elsewhere."""
    mode = at.attribute("mode", "bilinear")
    at.give(mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _used(values: Sequence[ir.Value]) -> bool:
    return any(value.uses() or value.is_graph_output() for value in values)


_UNCHANGED = {
    8: ("MaxPool",),
    10: ("AveragePool", "MaxPool"),
    11: ("Constant", "DepthToSpace", "TopK"),
    12: ("ArgMax", "ArgMin", "Constant", "GatherND"),
    13: ("DequantizeLinear", "QuantizeLinear"),
    14: ("GRU", "LSTM", "RNN", "Reshape"),
    15: ("Shape",),
    16: ("ScatterElements", "ScatterND"),
    18: ("LpPool", "Pad", "Resize"),
    19: ("AveragePool", "Cast", "CastLike", "QuantizeLinear"),
    21: ("DequantizeLinear", "QuantizeLinear"),
    23: ("DequantizeLinear", "QuantizeLinear"),
    24: ("Attention", "Cast", "CastLike"),
}
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

ADAPTERS: dict[tuple[str, int], Adapter] = {
    **{(op_type, version): unchanged for version, names in _UNCHANGED.items() for op_type in names},
    **{(f"Reduce{name}", 18): as_input("axes", 1) for name in _REDUCTIONS},
    **{(op_type, 13): along_axis for op_type in ("Hardmax", "LogSoftmax", "Softmax")},
    ("BatchNormalization", 9): batch_normalization_spatial,
    ("BatchNormalization", 14): batch_normalization_training,
    ("Clip", 11): clip,
    ("DFT", 20): as_input("axis", 2, scalar=True),
    ("Dropout", 10): dropout_mask,
    ("Dropout", 12): dropout_ratio,
    ("Erf", 13): float_only,
    ("GridSample", 20): grid_sample,
    ("Pad", 11): pad,
    ("ReduceSum", 13): as_input("axes", 1),
    ("Resize", 11): resize_coordinates,
    ("Resize", 13): resize_modes,
    ("RoiAlign", 16): roi_align,
    ("Scatter", 11): scatter,
    ("Slice", 10): slice_,
    ("Split", 13): as_input("split", 1),
    ("Split", 18): split_evenly,
    ("Squeeze", 13): as_input("axes", 1),
    ("TopK", 10): as_input("k", 1),
    ("Unsqueeze", 13): as_input("axes", 1),
    ("Upsample", 9): upsample_scales,
    ("Upsample", 10): upsample,
}
"""(operator, opset that brought its new version) → adapter; see the module."""
