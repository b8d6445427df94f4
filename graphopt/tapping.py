"""Makes inner values of a model its outputs, those inside If, Loop and Scan too.

A value of the main graph becomes an output as it is. One of a subgraph exists in several shapes or not at
all: each array leaves as its float32 elements in a row, and as a header of its rank and dims. Rows and
headers are carried outwards graph by graph: an If gives empty ones for the other branch, a Loop appends those
of each iteration to state variables of its own, a Scan stacks them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.runtime.values import Tensor, Value
from graphopt.runtime.watching import Tap

_FIRST_OPSET = 9  # Reshape by input, and a Scan without batches


class Untappable(Exception):  # noqa: N818 - it is no failure, but an answer
    """The value cannot be watched; the text says why."""


@dataclass(frozen=True)
class _Place:
    value: ir.Value
    graph: ir.Graph


class Tapper:
    """Taps values of one model, which it changes; the outputs it had are outputs no more.

    Shapes that the file states of inner values are dropped: ONNX Runtime plans its memory by them, and fails
    on a value that is watched if they are wrong.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._names = g.Names(model)
        self._owners = {inner: node for node in g.nodes(model) for inner in g.subgraphs(node)}
        self._places: dict[str, list[_Place]] = {}
        for graph in g.graphs(model):
            for value in g.defined(graph):
                self._places.setdefault(value.name or "", []).append(_Place(value, graph))
        self._functions = g.function_graphs(model)
        self._outputs: list[str] = []
        for node in g.nodes(model):
            for value in node.outputs:
                value.shape = None

    def tap(self, name: str) -> Tap:
        """Make a value an output.

        Raises:
            Untappable: there is no such value, or no way to get it out.
        """
        place = self._place(name)
        if place.graph is self._model.graph:
            return Tap(self._output(place.value))
        rows, header = self._raise(place, [self._row(place), self._header(place)])
        return Tap(self._output(rows), self._output(header))

    def measure(self, name: str) -> str:
        """The name of a new output: rank and dims of each array that the value holds in a run.

        Raises:
            Untappable: as for ``tap``.
        """
        place = self._place(name)
        return self._output(self._raise(place, [self._header(place)])[0])

    def finish(self) -> None:
        """Leave the taps as the only outputs, and remove what they do not need."""
        graph = self._model.graph
        values = {value.name: value for value in g.defined(graph)}
        graph.outputs[:] = [values[name] for name in dict.fromkeys(self._outputs)]
        for node in reversed(graph):
            if g.is_dead(node):
                g.remove(node)
        for value in list(graph.initializers.values()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[value.name or ""]

    def _place(self, name: str) -> _Place:
        places = self._places.get(name, [])
        if len(places) != 1:
            raise Untappable("several values have this name" if places else "there is no such value")
        place = places[0]
        if place.graph in self._functions:
            raise Untappable(
                "it lies in a function, which may be called from several places; inline it first"
            )
        return place

    def _output(self, value: ir.Value) -> str:
        assert value.name
        self._outputs.append(value.name)
        return value.name

    # What leaves a subgraph.

    def _row(self, place: _Place) -> ir.Value:
        """The elements as float32 [n]."""
        real = self._add(place.graph, "Cast", [place.value], ir.DataType.FLOAT, to=ir.DataType.FLOAT)
        return self._flat(place.graph, real)

    def _header(self, place: _Place) -> ir.Value:
        """Rank and dims as int64 [1 + rank]."""
        dims = self._add(place.graph, "Shape", [place.value], ir.DataType.INT64)
        rank = self._add(place.graph, "Shape", [dims], ir.DataType.INT64)
        return self._add(place.graph, "Concat", [rank, dims], ir.DataType.INT64, axis=0)

    def _flat(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        assert value.dtype is not None
        all_of_it = self._constant(graph, np.array([-1]))
        return self._add(graph, "Reshape", [value, all_of_it], value.dtype)

    def _raise(self, place: _Place, values: list[ir.Value]) -> list[ir.Value]:
        """Carry values out of all graphs around the place."""
        graph = place.graph
        while graph is not self._model.graph:
            node = self._owners[graph]
            if not g.is_op(node, "If", "Loop", "Scan") or g.opset(self._model, graph) < _FIRST_OPSET:
                raise Untappable(f"it lies in {g.label(node)}, which cannot give it away")
            leave = {"If": self._leave_if, "Loop": self._leave_loop, "Scan": self._leave_scan}[node.op_type]
            values = leave(node, graph, values)
            assert node.graph is None or isinstance(node.graph, ir.Graph)
            graph = self._home(values[0])
        return values

    @staticmethod
    def _home(value: ir.Value) -> ir.Graph:
        producer = value.producer()
        assert producer is not None and isinstance(producer.graph, ir.Graph)
        return producer.graph

    def _leave_if(self, node: ir.Node, graph: ir.Graph, values: list[ir.Value]) -> list[ir.Value]:
        for branch in g.subgraphs(node):
            branch.outputs.extend(values if branch is graph else [self._empty(branch, v) for v in values])
        return self._more_outputs(node, values)

    def _leave_scan(self, node: ir.Node, graph: ir.Graph, values: list[ir.Value]) -> list[ir.Value]:
        graph.outputs.extend(values)
        for name in ("scan_output_axes", "scan_output_directions"):
            if name in node.attributes:
                kept = [*node.attributes[name].as_ints(), *[0] * len(values)]
                node.attributes[name] = ir.AttrInt64s(name, kept)
        outer = self._home(node.outputs[0])
        stacked = self._more_outputs(node, values)
        return [self._flat(outer, value) for value in stacked]

    def _leave_loop(self, node: ir.Node, graph: ir.Graph, values: list[ir.Value]) -> list[ir.Value]:
        outer, states = self._home(node.outputs[0]), len(node.inputs) - 2
        starts = [self._empty(outer, value) for value in values]
        carried = []
        for value in values:
            assert value.dtype is not None
            state = self._value(value.dtype)
            graph.inputs.append(state)
            carried.append(self._add(graph, "Concat", [state, value], value.dtype, axis=0))
        graph.outputs[:] = [*graph.outputs[: 1 + states], *carried, *graph.outputs[1 + states :]]
        return self._rebuilt(node, [*node.inputs, *starts], states, values)

    def _rebuilt(
        self, node: ir.Node, inputs: Sequence[ir.Value | None], at: int, values: list[ir.Value]
    ) -> list[ir.Value]:
        """Put a node with more inputs and outputs in the place of one; its new outputs, from ``at`` on."""
        outer = self._home(node.outputs[0])
        added = [self._value(value.dtype) for value in values]
        kept = [ir.Value() for _ in node.outputs]
        new = ir.Node(
            node.domain, node.op_type, inputs, node.attributes.values(),
            outputs=[*kept[:at], *added, *kept[at:]], name=node.name,
        )  # fmt: skip
        outer.insert_after(node, new)
        for old, value in zip(node.outputs, kept, strict=True):
            g.inherit(old, value)
            places = self._places.get(value.name or "", [])
            places[:] = [_Place(value, p.graph) if p.value is old else p for p in places]
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
        outer.remove(node)
        self._owners.update({inner: new for inner in g.subgraphs(new)})
        return added

    # Small edits.

    def _more_outputs(self, node: ir.Node, values: list[ir.Value]) -> list[ir.Value]:
        """As many new outputs of a node, at its end."""
        before = len(node.outputs)
        node.resize_outputs(before + len(values))
        added = list(node.outputs[before:])
        for output, value in zip(added, values, strict=True):
            output.name, output.type = self._names.fresh("tap"), value.type
        return added

    def _empty(self, graph: ir.Graph, like: ir.Value) -> ir.Value:
        assert like.dtype is not None
        return self._constant(graph, np.zeros(0, like.dtype.numpy()))

    def _constant(self, graph: ir.Graph, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array)
        node = ir.node("Constant", [], {"value": tensor}, outputs=[self._value(tensor.dtype)])
        graph.insert_before(graph[0], node) if len(graph) else graph.append(node)
        return node.outputs[0]

    def _add(
        self, graph: ir.Graph, op_type: str, inputs: Sequence[ir.Value], dtype: ir.DataType, **attributes: int
    ) -> ir.Value:
        """Append a node and return its output."""
        node = ir.node(op_type, inputs, attributes, outputs=[self._value(dtype)])
        graph.append(node)
        return node.outputs[0]

    def _value(self, dtype: ir.DataType | None) -> ir.Value:
        assert dtype is not None
        return ir.Value(name=self._names.fresh("tap"), type=ir.TensorType(dtype))


def without_numbers(model: Model) -> dict[str, str]:
    """The values that are no tensors of numbers, and what they are instead, as far as ONNX can infer it."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model.skeleton())
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}
    found: dict[str, str] = {}
    graphs = [inferred.graph]
    for graph in graphs:  # grows
        graphs += [
            inner for node in graph.node for a in node.attribute for inner in (a.g, *a.graphs) if inner.node
        ]
        for info in (*graph.input, *graph.value_info, *graph.output):
            kind = info.type.WhichOneof("value")
            if kind == "tensor_type" and info.type.tensor_type.elem_type == onnx.TensorProto.STRING:
                found[info.name] = "it holds strings"
            elif kind not in (None, "tensor_type"):
                found[info.name] = "it is no tensor"
    return found


def elements(header: Value) -> int:
    """The number of elements of all arrays that a header tells of."""
    assert isinstance(header, Tensor)
    rest, total = header.numpy().tolist(), 0
    while rest:
        rank = rest[0]
        total += math.prod(rest[1 : 1 + rank])
        rest = rest[1 + rank :]
    return total
