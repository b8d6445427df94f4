"""The graph that ONNX Runtime really runs, its nodes traced back to those of the model.

Fusions keep the names of the values between them, and name what they make after what they replace: a
``QLinearConv`` still gives the value that the Conv's QuantizeLinear gave, a blocked Conv is called
``<value>_nchwc``. So an executed node is found by its outputs, or else by its name, and covers the model's
nodes from there back to the values that other executed nodes give.

Nodes of the model are known by the name of their first output, here called units.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.runtime.worker import Worker
from graphopt.target import CPU, Target

QUANTIZE = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Operators that convert between numbers and integers."""

HEAVY = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "LSTM",
        "GRU",
        "RNN",
        "Einsum",
    }
)
"""Operators whose time counts as that of a whole fusion."""

ABSORBED = frozenset({"Relu", "Clip"})
"""Operators that become part of what they follow."""

_REORDER = frozenset({"ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost"})
# Inserted by the runtime, too: a conversion wherever the model has no such node.
_LAYOUT = frozenset({"Transpose", "Reshape", "Cast", "Identity"})


@dataclass(frozen=True)
class Executed:
    """An optimized graph beside its model.

    Attributes:
        model: the model as it was given to ONNX Runtime, its nodes named by :func:`named`.
        graph: what ONNX Runtime runs for it.
    """

    model: ir.Model
    graph: ir.Model

    @classmethod
    def of(cls, model: Model, *, worker: Worker, target: Target = CPU, threads: int = 0) -> Executed:
        """Load the model into ONNX Runtime and read back what that runs.

        Raises:
            WorkerError: ONNX Runtime does not load it, or runs it in a form that it cannot write (TensorRT).
        """
        with worker.pool.written(named(model)) as path:
            return cls.of_file(model, path, worker=worker, target=target, threads=threads)

    @classmethod
    def of_file(cls, model: Model, path: Path, *, worker: Worker, target: Target, threads: int) -> Executed:
        """As :meth:`of`, for a file of the model that :func:`named` gives."""
        dumped = worker.optimized(path, target, threads)
        try:
            return cls(model.ir, Model.load(dumped).ir)
        finally:
            shutil.rmtree(dumped.parent)

    def nodes(self) -> Iterator[ir.Node]:
        """The executed nodes, those of subgraphs included."""
        return g.nodes(self.graph)

    def units(self, node: ir.Node) -> tuple[str, ...]:
        """What an executed node computes of the model: its heavy nodes, or else the one that it ends with.

        A Relu or Clip behind it does not count.
        Empty for conversions, and for nodes that the runtime made out of nothing that the model has.
        """
        return () if self.converts(node) else self._units(node, set())

    def covered(self, node: ir.Node) -> list[ir.Node]:
        """All nodes of the model that an executed node computes, the last first, conversions included."""
        ends = self._ends(node)
        found = dict.fromkeys(ends)
        stack = list(ends)
        while stack:
            for value in stack.pop().inputs:
                producer = None if value is None or value.name in self._boundary else value.producer()
                if producer is not None and producer not in found:
                    found[producer] = None
                    stack.append(producer)
        return list(found)

    def converts(self, node: ir.Node) -> bool:
        """Whether an executed node changes how a value is stored, and nothing else."""
        if node.op_type in QUANTIZE or node.op_type in _REORDER:
            return True
        return node.op_type in _LAYOUT and all(found.op_type != node.op_type for found in self.covered(node))

    def converted(self, node: ir.Node) -> str | None:
        """The model's value that a conversion stores anew, before any quantization."""
        return self.origin(node.inputs[0])

    def origin(self, value: ir.Value | None) -> str | None:
        """The name of the model's value that an executed value holds, in whatever type and layout."""
        while value is not None:
            if value.name in self._values:
                return _unquantized(self._values[value.name]).name
            producer = value.producer()
            if producer is None:
                return None
            if not self.converts(producer):
                ends = self._ends(producer)
                return _unquantized(ends[0].outputs[0]).name if ends else None
            value = producer.inputs[0]
        return None

    def float_name(self, name: str) -> str:
        """What the float model calls a value: its graph outputs are dequantized here, and bear its names."""
        return self._outputs.get(name, name)

    @cached_property
    def _outputs(self) -> dict[str, str]:
        outputs = [value for graph in g.graphs(self.model) for value in graph.outputs]
        found = {_unquantized(value).name or "": value.name or "" for value in outputs}
        return {name: given for name, given in found.items() if name in self._makers}

    def _units(self, node: ir.Node, seen: set[ir.Node]) -> tuple[str, ...]:
        unchanged = [end for end in self._ends(node) if end.op_type == node.op_type]
        covered = unchanged or [found for found in self.covered(node) if found.op_type not in QUANTIZE]
        heavy = [found for found in covered if found.op_type in HEAVY]
        if covered:
            last = next((found for found in covered if found.op_type not in ABSORBED), covered[0])
            return tuple(dict.fromkeys(g.output_name(found) for found in heavy or [last]))
        for reader in (use.node for value in node.outputs for use in value.uses()):
            if reader not in seen and (found := self._units(reader, seen | {node})):
                return found  # a piece of a node that the runtime took apart
        return ()

    def _ends(self, node: ir.Node) -> list[ir.Node]:
        """The model's nodes that an executed node ends with: they make its outputs, or bear its name."""
        made = [self._makers[value.name] for value in node.outputs if value.name in self._makers]
        if made or node.op_type in _REORDER or node.op_type in _LAYOUT:
            return list(dict.fromkeys(made))
        named = self._bearer(node.name or "")
        return [named] if named is not None else []

    def _bearer(self, name: str) -> ir.Node | None:
        """The node of the longest name that the name starts with."""
        for end in range(len(name), 0, -1):
            if name[:end] in self._makers and name[end : end + 1] in ("", "_", "/"):
                return self._makers[name[:end]]
        return None

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        return {
            value.name: value for graph in g.graphs(self.model) for value in g.defined(graph) if value.name
        }

    @cached_property
    def _makers(self) -> dict[str, ir.Node]:
        return {value.name: node for node in g.nodes(self.model) for value in node.outputs if value.name}

    @cached_property
    def _boundary(self) -> frozenset[str | None]:
        """The model's values that executed nodes give."""
        executed = list(self.nodes())
        given = {value.name for node in executed for value in node.outputs}
        # A conversion that the runtime adds bears the name of what it is added to, and gives nothing of it.
        ends = [end for node in executed if node.op_type not in QUANTIZE for end in self._ends(node)]
        return frozenset(given | {value.name for end in ends for value in end.outputs})


def named(model: Model) -> Model:
    """A copy whose nodes bear the names of their units, so that fused ones can be told."""
    copy = model.clone()
    for node in g.nodes(copy.ir):
        node.name = g.output_name(node) or node.name
    return copy


def _unquantized(value: ir.Value) -> ir.Value:
    """The value before QuantizeLinear and DequantizeLinear; a weight stays the integers that it is."""
    while (producer := value.producer()) is not None and producer.op_type in QUANTIZE:
        first = producer.inputs[0]
        if first is None:
            return value
        value = first
    return value
