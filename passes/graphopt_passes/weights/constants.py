"""The constants that weights are: where they live, who reads them, and how another form takes their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt_passes.exact.eliminate_dead_code import remove_dead

OVERRIDABLE = "callers may override it; if none does, use --freeze-initializers"
_NARROW = frozenset(
    ir.DataType[name]
    for name in ("FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2")
)


@dataclass(frozen=True)
class Weight:
    """A constant of floats.

    Attributes:
        value: an initializer of the main graph or a subgraph, or what a Constant node makes.
        tensor: its numbers, float32.
        home: the graph in which what computes it can stand, seen by all its readers: the main graph, or the
            body of a function.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    home: ir.Graph

    @property
    def name(self) -> str:
        """How reports call it."""
        return self.value.name or ""

    @property
    def readers(self) -> list[ir.Node]:
        """The nodes that read it, each once."""
        return list(dict.fromkeys(use.node for use in self.value.uses()))


def weights(model: Model) -> Iterator[Weight]:
    """All float32 constants that some node reads, in the order of their graphs; graph outputs are none."""
    bodies = [function.graph for function in model.ir.functions.values()]
    for root in (model.ir.graph, *bodies):
        for graph in (root, *root.subgraphs()):
            for value in _constants(graph):
                tensor = g.constant(value)
                if tensor is None or tensor.dtype is not ir.DataType.FLOAT or value.is_graph_output():
                    continue
                if value.uses():
                    yield Weight(value, tensor, root)


def overridable(model: Model) -> Iterator[Weight]:
    """The float32 initializers that callers may override, and that some node reads."""
    graph = model.ir.graph
    for value in graph.initializers.values():
        tensor = value.const_value if value.is_graph_input() else None
        if tensor is not None and tensor.dtype is ir.DataType.FLOAT and value.uses():
            yield Weight(value, tensor, graph)


def others(model: Model, least: int) -> Iterator[tuple[ir.Value, str]]:
    """Initializers and Constants of at least so many numbers that are no such weights, and why.

    Args:
        model: integers of 32 bits and more are no weights of it, and neither is what nobody reads.
        least: numbers.
    """
    for weight in overridable(model):
        if weight.tensor.size >= least:
            yield weight.value, OVERRIDABLE
    for value in (value for graph in g.graphs(model.ir) for value in _constants(graph)):
        tensor = g.constant(value)
        if tensor is not None and tensor.size >= least and tensor.dtype in _NARROW and value.uses():
            yield value, f"it is {tensor.dtype.name.lower()} already"


def summed_up(reasons: Iterable[str]) -> str:
    """Reasons in words, the most frequent first; empty if there are none."""
    return "; ".join(f"{count:,}x {reason}" for reason, count in Counter(reasons).most_common(3))


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from list(graph.initializers.values())
    yield from [node.outputs[0] for node in graph if g.is_op(node, "Constant")]


@dataclass(frozen=True)
class Front:
    """Writes nodes of constants in front of all others of a graph, one behind the other.

    Attributes:
        model, run: what is changed, and its record.
        first: the node that was the first of the graph.
    """

    model: Model
    run: Run
    first: ir.Node

    @classmethod
    def of(cls, weight: Weight, model: Model, run: Run) -> Front:
        """In front of the graph that all readers of a weight see."""
        return cls(model, run, weight.home[0])

    def constant(self, data: np.ndarray[Any, Any] | ir.TensorProtocol, name: str) -> ir.Value:
        """A new constant: an initializer, or in a function a Constant node."""
        return self.run.new_constant(self.model, self.first, data, name)

    def node(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """The output of a new node, without a name as yet."""
        found = [ir.AttrInt64(name, value) for name, value in attributes.items()]
        node = ir.Node("", op_type, list(inputs), found)
        assert self.first.graph is not None
        self.first.graph.insert_before(self.first, [node])
        return node.outputs[0]


def replace(weight: Weight, made: ir.Value, model: Model, run: Run) -> None:
    """Let a computed value take a weight's place for all its readers, under its name where that is free."""
    old, maker = weight.value, weight.value.producer()
    graph, name = (old.graph if maker is None else maker.graph), weight.name
    if maker is None and graph is not None:
        del graph.initializers[name]
    if graph is weight.home or run.names(model).is_unique(name):
        g.inherit(old, made)
    else:
        made.name, made.type, made.shape = run.names(model).fresh(name), old.type, old.shape
        old.replace_all_uses_with(made)
    if maker is not None:
        remove_dead(maker, run)
