"""What would be known of a model's values if a condition had a given value."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt import graph as g
from graphopt.shapes.inference import Shapes
from graphopt.shapes.rules import Fact

Owners = Mapping[ir.Graph, ir.Node]


class Supposition(Shapes):
    """Facts that hold in all runs in which a condition has a given value; the model is only read.

    Only what depends on the condition is inferred anew, the rest is taken from the facts beneath. An If whose
    condition is decided by this is the branch that it takes.
    """

    def __init__(
        self, beneath: Shapes, condition: ir.Value, held: Mapping[ir.Value, bool], owners: Owners
    ) -> None:
        """Suppose that some conditions hold or not.

        Args:
            beneath: what is known in any case.
            condition: whatever depends on this value is inferred anew.
            held: the values of scalar conditions, this one among them.
            owners: the nodes that hold subgraphs, from :func:`owners`.
        """
        super().__init__(beneath.model, beneath.symbols)
        self._beneath = beneath
        self.affected = _affected(condition, owners)
        for value, holds in held.items():
            self._facts[value] = beneath.fact(value)._replace(vector=(int(holds),))

    def fact(self, value: ir.Value | None) -> Fact:
        """All that is known of a value under the supposition."""
        if value in self._facts or (value is not None and value.producer() in self.affected):
            return super().fact(value)
        return self._beneath.fact(value)

    def visit(self, graph: ir.Graph) -> None:
        """Infer the nodes of a graph that the condition affects, in order."""
        for node in graph:
            if node in self.affected and node.outputs:
                self.fact(node.outputs[0])


def owners(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """The node that holds each of the subgraphs below a graph, however deep."""
    return {subgraph: node for node in graph.all_nodes() for subgraph in g.subgraphs(node)}


def _affected(condition: ir.Value, owners: Owners) -> set[ir.Node]:
    """The nodes that depend on a value, and those in the subgraphs of nodes that use it."""
    affected: set[ir.Node] = set()
    stack = [condition]
    while stack:
        value = stack.pop()
        owner = owners.get(value.graph) if value.graph is not None and value.is_graph_output() else None
        if owner is not None and owner not in affected:
            affected.add(owner)
            stack += owner.outputs
        for user in value.consumers():
            for node in [user, *(inner for graph in g.subgraphs(user) for inner in graph.all_nodes())]:
                stack += [] if node in affected else node.outputs
                affected.add(node)
    return affected
