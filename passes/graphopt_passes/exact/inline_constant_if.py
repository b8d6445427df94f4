"""If(c) with a constant c is one of its branches: the branch's nodes take the If's place.

    If(true, then, else) = then          If(false, then, else) = else

Values of the branch that share a name with a value of another scope are renamed; its initializers move out
with it. An output of the branch that cannot take the If output's place is handed on by an Identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Pass, Run


@dataclass(frozen=True)
class InlineConstantIf(Pass):
    """Replace every If whose condition is constant by the branch that it takes."""

    name: ClassVar[str] = "inline-constant-if"

    def apply(self, model: Model, run: Run) -> bool:
        """Inline from the outside in; what a branch brings along is looked at again."""
        revision = run.journal.revision
        for graph in [model.ir.graph, *(function.graph for function in model.ir.functions.values())]:
            self._sweep(graph, model, run)
        return run.journal.revision > revision

    def _sweep(self, graph: ir.Graph, model: Model, run: Run) -> None:
        stack = list(graph)
        while stack:
            node = stack.pop()
            if self._may_inline(node, model, run):
                branch = _branch(node)
                if graph in g.function_graphs(model.ir):
                    _write_initializers_as_nodes(branch)
                stack += _splice(node, branch, run.names(model))
                continue
            for subgraph in g.subgraphs(node):
                self._sweep(subgraph, model, run)

    def _may_inline(self, node: ir.Node, model: Model, run: Run) -> bool:
        if not g.is_op(node, "If") or g.array(node.inputs[0], limit=1) is None:
            return False
        reason = "to be kept (--keep)" if run.keeps(node) else hazard(model, run)
        if reason is not None:
            run.journal.refuse(self.name, g.label(node), reason)
            return False
        return run.journal.admit(self.name, g.output_name(node))


def hazard(model: Model, run: Run) -> str | None:
    """Why knowing more shapes would make ONNX Runtime refuse the model: Range takes [1] only unawares."""
    for node in [node for node in g.nodes(model.ir) if g.is_op(node, "Range")]:
        shapes = run.shapes(model)
        if any(shapes.dims(value) != () for value in node.inputs if value):
            return f"{g.label(node)} may be given a vector of one element, refused once its shape is known"
    return None


def _branch(node: ir.Node) -> ir.Graph:
    condition = g.array(node.inputs[0])
    assert condition is not None
    branch: ir.Graph = g.attribute(node, "then_branch" if condition.item() else "else_branch")
    return branch


def _write_initializers_as_nodes(branch: ir.Graph) -> None:
    """Turn initializers into Constant nodes: the body of a function has no place for them."""
    for value in list(branch.initializers.values()):
        assert value.const_value is not None
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)])
        del branch.initializers[value.name or ""]
        g.inherit(value, constant.outputs[0])
        first = next(iter(branch), None)
        branch.append(constant) if first is None else branch.insert_before(first, [constant])


def _splice(node: ir.Node, branch: ir.Graph, names: g.Names) -> list[ir.Node]:
    """Move the branch's nodes before the If and remove it; returns the nodes."""
    assert node.graph is not None
    graph = node.graph
    results = list(branch.outputs)
    branch.outputs.clear()
    _rename(branch, names)
    _move_initializers(branch, graph)
    moved = list(branch)
    branch.remove(moved)
    graph.insert_before(node, moved)
    for old, new in zip(node.outputs, results, strict=True):
        _hand_over(old, new, node)
    g.remove(node)
    return moved


def _rename(branch: ir.Graph, names: g.Names) -> None:
    for value in list(g.defined(branch)):
        if value.name and not names.is_unique(value.name):
            value.name = names.fresh(value.name)


def _move_initializers(branch: ir.Graph, graph: ir.Graph) -> None:
    values = list(branch.initializers.values())
    branch.initializers.clear()
    for value in values:
        graph.register_initializer(value)


def _hand_over(old: ir.Value, new: ir.Value, node: ir.Node) -> None:
    if g.can_replace(old, new) is None:
        g.replace(old, new)
        return
    assert node.graph is not None
    identity = ir.Node("", "Identity", [new], name=node.name)
    node.graph.insert_before(node, identity)
    g.inherit(old, identity.outputs[0])
