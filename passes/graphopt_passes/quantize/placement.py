"""Which nodes of a model can compute on integers, which values then lie on grids, and who shares one.

A part is what one integer kernel does: a layer with its constant bias and the Relu or Clip that its result's
grid makes superfluous, or a single node that joins or moves integers. Given the parts that are chosen,

    a value needs a grid    if a chosen part reads it, or a chosen part makes it and cannot give floats,
    and is read as integers by the chosen parts, by all others as floats.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Run
from graphopt_passes.quantize.fusable import DEFAULTS, KERNELS, SCALER, Kernel
from graphopt_passes.quantize.known_ranges import clip_limits
from graphopt_passes.quantize.recognize import is_quantized

if TYPE_CHECKING:
    from graphopt.model import Model


LEAST_FACTOR = 1e-6
"""Of scalers: beyond, and beyond its inverse, the step of a grid could leave the range of float32."""


@dataclass(frozen=True, eq=False)
class Part:
    """What one integer kernel does.

    Attributes:
        nodes: the node with the kernel, then its bias' Add, then its Relu or Clip.
        kernel: from the table.
        weight: its constant weight, if it has one.
        bias: its constant bias, float [channels].
        axis: the weight's axis of output channels.
        factor: what a scaler multiplies its input with.
    """

    nodes: tuple[ir.Node, ...]
    kernel: Kernel
    weight: ir.Value | None = None
    bias: ir.Value | None = None
    axis: int = 0
    factor: float = 1.0

    @property
    def node(self) -> ir.Node:
        """The node with the kernel."""
        return self.nodes[0]

    @cached_property
    def name(self) -> str:
        """The name of its node's first output, by which it is known; later that may be renamed."""
        return g.output_name(self.node)

    @cached_property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The activations and constants that it reads as integers, besides weight and bias."""
        if self.kernel.role == "scaler":
            return tuple(v for v in self.node.inputs if v is not None and g.constant(v) is None)
        count = self.kernel.operands or len(self.node.inputs)
        found = [value for value in self.node.inputs[:count] if value is not None]
        return tuple(value for value in found if value is not self.weight)

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        """What it makes."""
        return tuple(self.nodes[-1].outputs)

    @property
    def has_bias(self) -> bool:
        """Whether it adds a vector to its product, or could at no cost; a bare MatMul cannot."""
        return self.bias is not None or self.node.op_type != "MatMul"

    @property
    def tail(self) -> ir.Node | None:
        """The Relu or Clip that its result's grid makes superfluous."""
        return self.nodes[-1] if g.is_op(self.nodes[-1], "Relu", "Clip") else None


class Placement:
    """The parts of a model, and what follows from a choice among them."""

    def __init__(self, model: Model, run: Run) -> None:
        self._shapes = run.shapes(model)
        self.run = run
        self._kernels = KERNELS[run.target.name]
        self._taken: set[ir.Node] = set()
        self.refusals: dict[str, str] = {}
        self.refused: dict[str, ir.Node] = {}
        opset = int(model.ir.opset_imports.get("", 1))
        functions = g.function_graphs(model.ir)
        found = [
            part
            for graph in g.graphs(model.ir)
            if graph not in functions
            for part in self._parts(graph, opset)
        ]
        names = [part.name for part in found]
        self.parts = {part.name: part for part in found if names.count(part.name) == 1}
        self.makers = {value: part for part in self.parts.values() for value in part.outputs}

    def _parts(self, graph: ir.Graph, opset: int) -> Iterator[Part]:
        for node in graph:
            factor = self._factor(node)
            kernel = self._kernel(node) if factor is None else SCALER
            if kernel is None or node in self._taken:
                continue
            part = Part((node,), kernel, factor=factor or 1.0)
            reason = self._unfit(node, kernel, opset)
            if reason is None and kernel.role == "layer":
                part, reason = self._layer(node, kernel)
            reason = reason or self._foreign(part) or _infinite(part)
            if reason is not None:
                self.refusals[g.output_name(node)] = reason
                self.refused[g.output_name(node)] = node
                continue
            part = self._with_tail(part)
            self._taken.update(part.nodes)
            yield part

    def _kernel(self, node: ir.Node) -> Kernel | None:
        return self._kernels.get(node.op_type) if node.domain in g.DEFAULT_DOMAINS else None

    def _factor(self, node: ir.Node) -> float | None:
        """What a node multiplies all numbers with, if that only changes the step of their grid."""
        if "Mul" not in self._kernels or not g.is_op(node, "Mul", "Div"):
            return None
        if g.is_op(_only_reader(node), *self._kernels["Mul"].tail):
            return None  # a kernel takes these in
        constant = g.array(node.inputs[1], 1)
        if constant is None and node.op_type == "Mul":
            constant = g.array(node.inputs[0], 1)
        if constant is None or constant.ndim or constant.dtype != np.float32:
            return None
        factor = float(constant) if node.op_type == "Mul" else 1 / float(constant) if constant else 0.0
        return factor if LEAST_FACTOR < factor < 1 / LEAST_FACTOR else None

    def _unfit(self, node: ir.Node, kernel: Kernel, opset: int) -> str | None:
        """Why a node has no integer kernel although its operator has."""
        if self.run.keeps(node) or is_quantized(node):
            return "it is kept as it is" if self.run.keeps(node) else "it is quantized already"
        if opset < kernel.since:
            return f"it has an integer kernel from opset {kernel.since} on"
        for name, values in kernel.needs:
            if (found := _plain(g.attribute(node, name, DEFAULTS[name]))) not in values:
                return f"there is no integer kernel with {name} = {found}"
        if len(node.outputs) > 1 and kernel.role != "mover":
            return "it has more than one output"
        if node.op_type == "MaxPool" and len(node.outputs) > 1:
            return "its indices are used"
        floats = all(self._is_float(value) for value in (*Part((node,), kernel).inputs, *node.outputs))
        return None if floats else "it does not compute on float32"

    def _is_float(self, value: ir.Value) -> bool:
        return self._shapes.dtype(value) == ir.DataType.FLOAT

    def _foreign(self, part: Part) -> str | None:
        """Q and DQ must stand in the same graph as the kernel."""
        graph = part.node.graph
        for value in part.inputs:
            if g.constant(value) is None and _home(value) is not graph:
                return f"it captures '{value.name}' from an outer graph"
        if part.kernel.role != "layer" and all(g.constant(value) is not None for value in part.inputs):
            return "it reads constants only"
        if part.kernel.role == "scaler" and part.outputs[0].is_graph_output():
            return "it makes an output of the model"
        return None

    # Layers.

    def _layer(self, node: ir.Node, kernel: Kernel) -> tuple[Part, str | None]:
        weight = node.inputs[1]
        if g.constant(weight) is None:
            part = Part((node,), kernel)
            dynamic = node.op_type == "MatMul" and g.constant(node.inputs[0]) is None
            return part, None if dynamic else "its weight is no constant"
        if g.constant(node.inputs[0]) is not None:
            return Part((node,), kernel), "its input is a constant"
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        tensor = g.constant(weight)
        assert tensor is not None
        axis = _channel_axis(node, len(tensor.shape))
        part = Part((node,), kernel, weight, bias, axis)
        if node.op_type == "MatMul":
            if len(tensor.shape) != 2:
                return part, "its weight is no matrix"
            return self._with_bias(part), None
        channels = tensor.shape.numpy()[axis]
        if bias is not None and not _is_vector(bias, channels):
            return part, "its bias is no constant vector"
        return part, None

    def _with_bias(self, part: Part) -> Part:
        """A MatMul with the constant vector that is added to it, where the runtime makes a Gemm of both.

        It does for matrices, and for more dims if all are known. Elsewhere a bias of integers would be
        dequantized in every run, and one of floats is added to the float result.
        """
        x = part.node.inputs[0]
        assert x is not None
        if self._shapes.rank(x) != 2 and self._shapes.static_dims(x) is None:
            return part
        follower = _only_reader(part.node)
        if not g.is_op(follower, "Add") or follower is None or self.run.keeps(follower):
            return part
        other = next((v for v in follower.inputs if v is not part.node.outputs[0]), None)
        assert part.weight is not None
        tensor = g.constant(part.weight)
        assert tensor is not None
        if other is None or not _is_vector(other, tensor.shape.numpy()[1]):
            return part
        return Part((part.node, follower), part.kernel, part.weight, other, part.axis)

    def _with_tail(self, part: Part) -> Part:
        follower = _only_reader(part.nodes[-1])
        if follower is None or not g.is_op(follower, *part.kernel.tail) or self.run.keeps(follower):
            return part
        if follower.inputs[0] is not part.nodes[-1].outputs[0] or follower.graph is not part.node.graph:
            return part
        if follower.op_type == "Clip" and not _clips_around_zero(follower):
            return part
        # Behind a Relu or Clip the runtime fuses nothing without a QuantizeLinear.
        kernel = replace(part.kernel, float_result=False)
        return Part((*part.nodes, follower), kernel, part.weight, part.bias, part.axis)

    # What follows from a choice.

    def on_grids(self, chosen: Collection[str]) -> list[ir.Value]:
        """The activations that lie on grids, in no particular order but always the same."""
        found: dict[ir.Value, None] = {}
        for part in self._chosen(chosen):
            found.update(dict.fromkeys(v for v in part.inputs if g.constant(v) is None))
            if not part.kernel.float_result:
                found.update(dict.fromkeys(part.outputs))
        return list(found)

    def _chosen(self, chosen: Collection[str]) -> list[Part]:
        return [part for name, part in self.parts.items() if name in chosen]

    def origin(self, value: ir.Value, chosen: Collection[str]) -> tuple[ir.Value, float]:
        """The value whose integers a value shares, moved or scaled, and the factor of its step."""
        part, factor = self.makers.get(value), 1.0
        while part is not None and part.name in chosen and part.kernel.role in ("mover", "scaler"):
            value, factor = part.inputs[0], factor * part.factor
            part = self.makers.get(value)
        return value, factor


def consistent(placement: Placement, chosen: Collection[str]) -> frozenset[str]:
    """The chosen parts without those that only convert: nobody on either side computes on integers.

    A join or a mover is worth something only between others; removing one may strand its neighbour.
    """
    left = set(chosen)
    while True:
        heads = {placement.parts[name].node for name in left}
        stranded = {name for name in left if _stranded(placement, placement.parts[name], left, heads)}
        if not stranded:
            return frozenset(left)
        left -= stranded


def _stranded(placement: Placement, part: Part, chosen: set[str], heads: set[ir.Node]) -> bool:
    if part.kernel.role == "layer":
        return False
    activations = [value for value in part.inputs if g.constant(value) is None]
    before = all((m := placement.makers.get(v)) is not None and m.name in chosen for v in activations)
    return not (before and any(use.node in heads for value in part.outputs for use in value.uses()))


def _infinite(part: Part) -> str | None:
    """No grid holds NaN and infinity, such as masks are made of."""
    for value in (*part.inputs, part.weight, part.bias):
        data = g.array(value)
        if data is not None and not np.isfinite([data.min(initial=0), data.max(initial=0)]).all():
            assert value is not None
            return f"'{value.name}' is not finite"
    return None


def _home(value: ir.Value) -> ir.Graph | None:
    producer = value.producer()
    found: Any = producer.graph if producer is not None else value.graph
    return found if isinstance(found, ir.Graph) else None


def _plain(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def _channel_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and g.attribute(node, "transB", 0) else rank - 1


def _is_vector(value: ir.Value, channels: int) -> bool:
    tensor = g.constant(value)
    return tensor is not None and tuple(tensor.shape.numpy()) == (channels,)


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The one node that reads the node's one output."""
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and uses[0].node.graph is node.graph else None


def _clips_around_zero(node: ir.Node) -> bool:
    """Clip(a, b) with constants a ≤ 0 ≤ b, which a grid can imitate."""
    low, high = clip_limits(node)
    return low is not None and high is not None and low <= 0.0 <= high


def saturates(part: Part, low: float, high: float) -> bool:
    """Whether a grid from ``low`` to ``high`` cuts off what the part's Relu or Clip cuts off."""
    node = part.tail
    if node is None:
        return True
    if node.op_type == "Relu":
        return low >= 0.0
    a, b = clip_limits(node)
    slack = 1e-6
    return a is not None and b is not None and low >= a * (1 + slack) and high <= b * (1 + slack)
