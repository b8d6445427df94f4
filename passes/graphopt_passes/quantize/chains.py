"""Two linear layers with nothing between them but what scales with its input, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.rewrite import RefusedError
from graphopt_passes.quantize.layers import LINEAR, Layer, own_constant, replace_constant

_ELEMENTWISE = ("Relu", "LeakyRelu", "PRelu")
_POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


@dataclass(frozen=True)
class Shift:
    """A constant with one number per channel: a bias, an operand of Add, the scale of a normalization."""

    node: ir.Node
    index: int

    def array(self, channels: int) -> NDArray[np.float64]:
        """Its numbers, float64 [channels]."""
        found = g.array(self.node.inputs[self.index])
        assert found is not None
        return np.broadcast_to(found.astype(np.float64).ravel(), (channels,))

    def divide(self, model: Model, run: Run, by: NDArray[np.float64]) -> None:
        """Divide its numbers, channel by channel."""
        old = g.array(self.node.inputs[self.index])
        assert old is not None
        shape = old.shape if old.size == by.size else by.shape
        divided = (self.array(by.size) / by).astype(old.dtype).reshape(shape)
        replace_constant(model, run, self.node, self.index, divided)


@dataclass(frozen=True)
class Chain:
    """Layers whose channels can exchange scales.

    Attributes:
        name: of the first layer's output.
        first: makes the channels.
        second: reads them; its input channels are the first's channels.
        shifts: what is added between.
    """

    name: str
    first: Layer
    second: Layer
    shifts: tuple[Shift, ...]

    def bias(self) -> NDArray[np.float64]:
        """The size of all that is added, [channels]."""
        sizes = (np.abs(shift.array(self.first.channels)) for shift in self.shifts)
        return sum(sizes, start=np.zeros(self.first.channels))


def find_chains(model: Model, run: Run, rule: str) -> list[Chain]:
    """All chains, in the order of the graph; where one nearly is, the journal gets the reason."""
    chains = []
    for node in g.nodes(model.ir):
        if not g.is_op(node, *LINEAR) or g.constant(node.inputs[1]) is None:
            continue
        try:
            chains.append(_Walk(model, run, node).chain())
        except (RefusedError, KeyError) as refused:
            run.journal.refuse(rule, g.label(node), str(refused.args[0]))
    return chains


class _Walk:
    """From a linear node to the next, and where the channels lie on the way.

    After a Conv they lie along axis 1, after a MatMul along the last; with two dims both are one.
    """

    def __init__(self, model: Model, run: Run, node: ir.Node) -> None:
        self.model, self.run = model, run
        self._require_free(node)
        self.first = Layer.of(node)
        self.axis_1 = node.op_type != "MatMul"
        self.axis_last = node.op_type != "Conv"
        self.shifts: list[Shift] = []

    def chain(self) -> Chain:
        """The chain that begins here.

        Raises:
            RefusedError: there is none; the text says why.
        """
        self._bias()
        value = self.first.node.outputs[0]
        while not g.is_op(node := self._consumer(value), *LINEAR):
            self._pass(node, value)
            value = node.outputs[0]
        second = self._second(node, value)
        return Chain(g.output_name(self.first.node), self.first, second, tuple(self.shifts))

    def _require_free(self, node: ir.Node) -> None:
        require(not self.run.keeps(node), f"{g.label(node)} is to be kept (--keep)")

    def _bias(self) -> None:
        node = self.first.node
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return
        bias = own_constant(node, 2)
        along = bias.shape.numpy()[-1:] in ((), (1,), (self.first.channels,))
        require(along and bias.size in (1, self.first.channels), "its bias varies by row")
        self.shifts.append(Shift(node, 2))

    def _consumer(self, value: ir.Value) -> ir.Node:
        uses = list(value.uses())
        require(not value.is_graph_output(), f"'{value.name}' is a graph output")
        require(len(uses) == 1, f"'{value.name}' has {len(uses)} consumers")
        node: ir.Node = uses[0].node
        require(node.graph is self.first.node.graph, f"'{value.name}' is captured by a subgraph")
        self._require_free(node)
        return node

    def _pass(self, node: ir.Node, value: ir.Value) -> None:
        """Step over a node that scales with its input."""
        if g.is_op(node, "Add"):
            self._add(node, value)
        elif g.is_op(node, "Flatten", "Reshape"):
            self._flatten(node, value)
        elif g.is_op(node, *_POOLING):
            require(self.axis_1, f"{g.label(node)} reads channels along another axis")
        else:
            scales = g.is_op(node, *_ELEMENTWISE) and node.inputs[0] is value
            require(scales, f"{g.label(node)} does not scale with its input")

    def _add(self, node: ir.Node, value: ir.Value) -> None:
        index = 1 if node.inputs[0] is value else 0
        behind = 0 if self.axis_last else len(self.first.weight_shape()) - 2
        shape = (self.first.channels, *[1] * behind)
        found = own_constant(node, index).shape.numpy()
        require(found in (shape, (1, *shape)), f"{g.label(node)} adds a constant that is not one per channel")
        self.shifts.append(Shift(node, index))

    def _flatten(self, node: ir.Node, value: ir.Value) -> None:
        shapes = self.run.shapes(self.model)
        before, after = shapes.dims(value), shapes.dims(node.outputs[0])
        flat = before and after and len(after) == 2 and before[0] == after[0]
        require(self.axis_1 and flat, f"{g.label(node)} may mix channels")
        self.axis_last = True

    def _second(self, node: ir.Node, value: ir.Value) -> Layer:
        require(node.inputs[0] is value, f"{g.label(node)} reads '{value.name}' as its weight or bias")
        second = Layer.of(node)
        along = self.axis_1 if node.op_type == "Conv" else self.axis_last
        require(along, f"{g.label(node)} reads channels along another axis")
        require(second.inputs % self.first.channels == 0, f"{g.label(node)} does not read whole channels")
        return replace(second, inputs=self.first.channels)


def require(condition: object, why_not: str) -> None:
    """Refuse with a reason unless the condition holds.

    Raises:
        RefusedError: it does not.
    """
    if not condition:
        raise RefusedError(why_not)
