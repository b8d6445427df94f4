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
        """Inline until no If with a constant condition is left; an inlined branch may hold more of them."""
        changed, queue = False, [node for node in g.nodes(model.ir) if g.is_op(node, "If")]
        while queue:
            node = queue.pop()
            if node.graph is None or not self._inline(node, model, run):
                continue
            changed = True
        return changed

    def _inline(self, node: ir.Node, model: Model, run: Run) -> bool:
        condition = g.array(node.inputs[0], limit=1)
        if condition is None:
            return False
        if run.keeps(node):
            run.journal.refuse(self.name, g.label(node), "to be kept (--keep)")
            return False
        if not run.journal.admit(self.name, g.output_name(node)):
            return False
        branch = g.attribute(node, "then_branch" if condition.item() else "else_branch")
        _splice(node, branch, run.names(model))
        return True


def _splice(node: ir.Node, branch: ir.Graph, names: g.Names) -> None:
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
