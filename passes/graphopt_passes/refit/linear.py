"""A Conv, Gemm or MatMul with a constant weight as y = W·x + b, read from a graph and written back.

W is rows [channels, columns]: columns are C/groups·∏kernel of a Conv, in this order, and K of a product. b is
what the node itself adds; behind a MatMul it is what an Add of a constant adds next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.rewrite import RefusedError
from graphopt.runtime.accumulators import Array
from graphopt_passes.exact.eliminate_dead_code import is_unused, remove_dead
from graphopt_passes.refit.solve import Fit

LINEAR = ("Conv", "Gemm", "MatMul")
_NUMBERS = 1 << 21  # of a weight, that are worked on at once


@dataclass(frozen=True)
class Linear:
    """One such layer, known by the name of what it gives, which is the same in all clones of a model.

    Attributes:
        name: of its output.
        op: Conv, Gemm or MatMul.
        node: in the model that it was read from.
        channels: rows of W, all groups together.
        columns: of W.
        groups: of a Conv, else 1.
        kernel: elements of a Conv's kernel, else 1.
    """

    name: str
    op: str
    node: ir.Node
    channels: int
    columns: int
    groups: int = 1
    kernel: int = 1

    @classmethod
    def of(cls, node: ir.Node) -> Linear:
        """Read a node.

        Raises:
            RefusedError: it is no such layer, or its weight is no constant of its own.
        """
        shape = _weight(node).shape.numpy()
        turned = _is_turned(node)
        _require_plain_bias(node, shape[1] if turned else shape[0])
        if node.op_type == "Conv":
            groups = int(g.attribute(node, "group", 1))
            kernel = math.prod(shape[2:])
            return cls(g.output_name(node), "Conv", node, shape[0], shape[1] * kernel, groups, kernel)
        if len(shape) != 2:
            raise RefusedError(f"the weight of {g.label(node)} has rank {len(shape)}, not 2")
        _require_plain(node)
        columns, channels = shape if turned else shape[::-1]
        return cls(g.output_name(node), node.op_type, node, channels, columns)

    @property
    def source(self) -> str:
        """The name of what it reads."""
        return g.input_name(self.node, 0)

    @property
    def weights(self) -> Mapping[int, int]:
        """Where its weight is among the inputs, and how many channels that sums over."""
        return {1: self.columns // self.kernel}

    @property
    def axis(self) -> int:
        """The axis of the output that holds its channels."""
        return 1 if self.op == "Conv" else -1

    @property
    def size(self) -> int:
        """Numbers of the weight."""
        return self.channels * self.columns

    def fit(self) -> Fit:
        """W and b as least squares takes them, [groups, channels/groups, …]."""
        rows = self.rows().reshape(self.groups, -1, self.columns)
        return Fit(rows.astype(np.float64), self.bias().reshape(self.groups, -1).astype(np.float64))

    def rows(self) -> NDArray[np.float32]:
        """W, float32 [channels, columns]; a view where numpy can."""
        weight = np.asarray(_weight(self.node).numpy(), np.float32)
        return (weight.T if self.is_turned else weight).reshape(self.channels, self.columns)

    def bias(self) -> NDArray[np.float32]:
        """What the node itself adds, float32 [channels]; 0 where nothing is."""
        own = self.node.inputs[2] if self.op != "MatMul" and len(self.node.inputs) > 2 else None
        stored = g.array(own)
        if stored is None:
            return np.zeros(self.channels, np.float32)
        return np.broadcast_to(np.asarray(stored, np.float32).reshape(-1), (self.channels,))

    @property
    def can_shift(self) -> bool:
        """Whether a constant can be added to what it gives, without another node."""
        if self.op == "MatMul":
            return _added(self.node, self.channels) is not None
        own = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        return own is None or _fits(g.constant(own), self.channels)

    def write(self, model: Model, run: Run, fit: Fit) -> None:
        """Put another W and b into the graph that the layer was read from, as float32.

        Args:
            model, run: of that graph.
            fit: its bias is that of :meth:`fit`, unless ``can_shift``.
        """
        shape = _weight(self.node).shape.numpy()
        found = np.asarray(fit.rows, np.float32).reshape(self.channels, self.columns)
        stored = found.T if self.is_turned else found.reshape(shape)
        shift = fit.bias.reshape(-1) - self.bias()
        put_constant(model, run, self.node, 1, np.ascontiguousarray(stored))
        if shift.any():
            self.shift(model, run, shift)

    @property
    def is_turned(self) -> bool:
        """Whether the weight is stored as [columns, channels]."""
        return _is_turned(self.node)

    def shift(self, model: Model, run: Run, shift: Array) -> None:
        """Add a constant to what it gives, [channels]; only if ``can_shift``."""
        if self.op != "MatMul":
            own = np.asarray(self.bias() + shift, np.float32)
            self.node.resize_inputs(max(len(self.node.inputs), 3))
            put_constant(model, run, self.node, 2, own)
            return
        found = _added(self.node, self.channels)
        assert found is not None
        add, index = found
        old = g.array(add.inputs[index])
        assert old is not None
        flat = np.broadcast_to(old.reshape(-1), (self.channels,))
        shape = (*(1,) * (old.ndim - 1), self.channels)
        put_constant(model, run, add, index, (flat + shift).astype(old.dtype).reshape(shape))


def linear_layers(model: Model) -> Iterator[Linear | tuple[ir.Node, str]]:
    """All of the main graph in its order; those that cannot be refitted as the node and the reason."""
    for node in model.ir.graph:
        if not g.is_op(node, *LINEAR):
            continue
        try:
            yield Linear.of(node)
        except RefusedError as error:
            yield node, str(error)


def layers_of(model: Model) -> dict[str, Linear]:
    """Those that can be refitted, by name, in the order of the graph."""
    return {one.name: one for one in linear_layers(model) if isinstance(one, Linear)}


def _weight(node: ir.Node) -> ir.TensorProtocol:
    """The weight of a layer.

    Raises:
        RefusedError: it is no float32 constant that only this node uses.
    """
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if g.is_overridable(value):
        raise RefusedError("callers may override its weight (--freeze-initializers)")
    tensor = g.constant(value)
    if value is None or tensor is None or len(tensor.shape) < 2:
        raise RefusedError(f"{g.label(node)} has no constant weight")
    if not _is_own(value):
        raise RefusedError(f"the weight '{value.name}' is used elsewhere, too")
    if tensor.dtype is not ir.DataType.FLOAT:
        raise RefusedError(f"the weight '{value.name}' is {tensor.dtype.name}")
    return tensor


def _is_turned(node: ir.Node) -> bool:
    return node.op_type != "Conv" and not g.attribute(node, "transB", 0)


def in_parts(rows: Array) -> Iterator[slice]:
    """Some channels of a weight [channels, columns] after the others: about two million numbers at a time."""
    step = max(_NUMBERS // rows.shape[1], 1)
    return (slice(start, min(start + step, len(rows))) for start in range(0, len(rows), step))


def _require_plain(node: ir.Node) -> None:
    """Refuse a Gemm whose numbers are not those that it computes with."""
    if node.op_type == "Gemm" and (g.attribute(node, "alpha", 1.0), g.attribute(node, "beta", 1.0)) != (1, 1):
        raise RefusedError(f"{g.label(node)} scales its weight or its bias")


def _require_plain_bias(node: ir.Node, channels: int) -> None:
    """Refuse what a Conv or Gemm adds, unless it is a constant for each channel: what it gives is W·x + b."""
    if any(not _fits(g.constant(one), channels) for one in node.inputs[2:] if one is not None):
        raise RefusedError(f"{g.label(node)} adds what is no constant for each channel")


def _added(node: ir.Node, channels: int) -> tuple[ir.Node, int] | None:
    """The Add of a constant per channel that alone reads what a node gives, and where the constant is."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or not g.is_op(uses[0].node, "Add"):
        return None
    add, index = uses[0].node, 1 - uses[0].idx
    return (add, index) if _fits(g.constant(add.inputs[index]), channels) else None


def _fits(tensor: ir.TensorProtocol | None, channels: int) -> bool:
    """Whether a constant holds one number per channel in its last axis, or one for all."""
    if tensor is None or tensor.dtype is not ir.DataType.FLOAT:
        return False
    return tensor.size == 1 or (tensor.size == channels == tensor.shape.numpy()[-1])


def put_constant(model: Model, run: Run, node: ir.Node, index: int, data: NDArray[np.float32]) -> None:
    """Put new numbers in the place of a constant, in its value where only this node uses it."""
    old = node.inputs[index]
    if old is not None and old.is_initializer() and _is_own(old) and old.shape == data.shape:
        old.const_value = run.spill.keep(ir.Tensor(data, name=old.name))
        return
    name = (old.name if old is not None else None) or f"{g.output_name(node)}_bias"
    node.replace_input_with(index, run.new_constant(model, node, data, name))
    maker = old.producer() if old is not None else None
    if maker is not None:
        remove_dead(maker, run)
    elif old is not None and old.is_initializer() and is_unused(old) and old.graph is not None:
        del old.graph.initializers[old.name or ""]


def _is_own(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not (value.is_graph_output() or value.is_graph_input())
