"""eliminate-dead-code: drop nodes whose outputs nobody uses, and initializers that nobody reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Pass, Run

if TYPE_CHECKING:
    from graphopt.model import Model


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove what no graph output depends on, captures included.

    Graph inputs, overridable initializers and the outputs of control flow belong to an interface and stay.
    A function goes when its last call goes; one that was never called was shipped on purpose and stays.
    """

    name = "eliminate-dead-code"

    def apply(self, model: Model, run: Run) -> bool:
        """One sweep from the outputs to the inputs, subgraphs before what they capture."""
        revision = run.journal.revision
        called = called_functions(model.ir)
        roots = [model.ir.graph, *(function.graph for function in model.ir.functions.values())]
        for graph in roots:
            self._sweep(graph, run)
        drop_uncalled(model.ir, called)
        return run.journal.revision > revision

    def _sweep(self, graph: ir.Graph, run: Run) -> None:
        for node in reversed(graph):
            if g.is_dead(node) and not run.keeps(node) and run.journal.admit(self.name, g.output_name(node)):
                g.remove(node)
                continue
            for subgraph in g.subgraphs(node):
                self._sweep(subgraph, run)
        for name, value in list(graph.initializers.items()):
            if is_unused(value) and run.journal.admit(self.name, name):
                del graph.initializers[name]


def is_unused(initializer: ir.Value) -> bool:
    """Whether nothing needs an initializer: no node, no graph output, no caller who could override it."""
    return not (initializer.uses() or initializer.is_graph_output() or initializer.is_graph_input())


def remove_dead(node: ir.Node, run: Run | None = None) -> None:
    """Remove a node if it is dead, and then whatever only it kept alive, but nothing that the run keeps."""
    stack = [node]
    while stack:
        dead = stack.pop()
        if dead.graph is None or not g.is_dead(dead) or (run is not None and run.keeps(dead)):
            continue
        inputs = [value for value in (*dead.inputs, *g.captures(dead)) if value is not None]
        g.remove(dead)
        for value in inputs:
            producer = value.producer()
            if producer is not None:
                stack.append(producer)
            elif value.is_initializer() and value.graph is not None and is_unused(value):
                del value.graph.initializers[value.name or ""]


def called_functions(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """The functions that some node calls."""
    if not model.functions:
        return set()
    return {node.op_identifier() for node in g.nodes(model)} & model.functions.keys()


def drop_uncalled(model: ir.Model, called_before: set[ir.OperatorIdentifier]) -> None:
    """Remove the functions that were called before a rewrite and no longer are, and what only they called."""
    while gone := [key for key in model.functions if key in called_before - called_functions(model)]:
        for key in gone:
            del model.functions[key]
