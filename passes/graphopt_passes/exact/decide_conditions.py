"""decide-conditions: a condition has the only value with which the model does not fail.

    c = true  when some node that runs whenever If(c) does fails for c = false, and the other way round

A run that fails has no outputs, so a value of c with which every run fails needs no branch. Exporters leave
such conditions behind where a model squeezes a dim "if it is 1": without the squeeze, an LSTM behind it would
be given a tensor of rank 4 and refuse to run. Where the original gives outputs, the result gives the same;
where the original fails, the result may fail elsewhere or succeed.

Each value is supposed in turn and its consequences for shapes are followed, through the Ifs that it decides,
to a node whose demands on ranks (see :mod:`graphopt_passes.analysis.contracts`) it breaks. Such a node counts
if it runs for certain, in the graph of the If or one around it, and if an output of the model needs it, as
ONNX Runtime may leave out others. Conditions inside functions are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Pass, Run
from graphopt.shapes.supposition import Owners, Supposition, owners
from graphopt_passes.analysis.contracts import violation
from graphopt_passes.exact.inline_constant_if import hazard


@dataclass(frozen=True)
class DecideConditions(Pass):
    """Make conditions constant that are known in every run that does not fail."""

    name: ClassVar[str] = "decide-conditions"

    def apply(self, model: Model, run: Run) -> bool:
        """Look at every If whose branches differ in rank; inlining the branch is another pass's work."""
        undecided = [node for node in model.ir.graph.all_nodes() if _is_undecided(node)]
        undecided = [node for node in undecided if _ranks_differ(node, model, run)]
        if not undecided:
            return False
        revision, scope = run.journal.revision, _Scope(model, run)
        for node in undecided:
            if _is_undecided(node):  # not with the condition of an earlier one
                self._decide(node, scope)
        return run.journal.revision > revision

    def _decide(self, node: ir.Node, scope: _Scope) -> None:
        condition, run = node.inputs[0], scope.run
        assert condition is not None and node.graph is not None
        failures = [scope.failure(node, holds) for holds in (False, True)]
        uses = [use for use in condition.uses() if node.graph in scope.around(use.node)]
        reason = _why_not(failures, [use.node for use in uses], scope)
        if reason is not None:
            run.journal.refuse(self.name, g.label(node), reason)
        elif run.journal.admit(self.name, condition.name or ""):
            data = np.full(scope.dims(condition), failures[0] is not None, np.bool_)
            constant = run.new_constant(scope.model, node, data, f"{condition.name}_decided")
            for user, index in uses:
                user.replace_input_with(index, constant)


def _is_undecided(node: ir.Node) -> bool:
    return g.is_op(node, "If") and g.constant(node.inputs[0]) is None


def _ranks_differ(node: ir.Node, model: Model, run: Run) -> bool:
    shapes = run.shapes(model)
    then, otherwise = ([shapes.rank(value) for value in graph.outputs] for graph in g.subgraphs(node))
    return any(a != b for a, b in zip(then, otherwise, strict=True) if None not in (a, b))


def _why_not(failures: list[str | None], users: list[ir.Node], scope: _Scope) -> str | None:
    """Why the condition stays; ``failures`` are the reasons why it cannot be false, and true."""
    if failures[0] is None and failures[1] is None:
        return "nothing proves that one of the branches makes the model fail"
    if failures[0] is not None and failures[1] is not None:
        return f"both branches make the model fail: {failures[0]}; {failures[1]}"
    if any(map(scope.run.keeps, users)):
        return "to be kept (--keep)"
    return hazard(scope.model, scope.run)


class _Scope:
    """The model with what all its conditions share: which graph holds which, and what outputs need."""

    def __init__(self, model: Model, run: Run) -> None:
        self.model, self.run = model, run
        self.owners: Owners = owners(model.ir.graph)
        self.needed = _needed(model.ir.graph)

    def dims(self, condition: ir.Value) -> list[int]:
        """The dims of a value of one element, none or 1."""
        return [1] * (self.run.shapes(self.model).rank(condition) or 0)

    def around(self, node: ir.Node) -> Iterator[ir.Graph]:
        """The graphs that a node stands in, from the inside out."""
        found: ir.Node | None = node
        while found is not None and isinstance(found.graph, ir.Graph):
            yield found.graph
            found = self.owners.get(found.graph)

    def failure(self, node: ir.Node, holds: bool) -> str | None:
        """Why the model fails when an If's condition has this value while the If runs, or ``None``."""
        condition = node.inputs[0]
        assert condition is not None
        held = {**self._held_around(node), condition: holds}
        supposed = Supposition(self.run.shapes(self.model), condition, held, self.owners)
        for other in self._running(node, supposed):
            reason = violation(supposed.at(other)) if other in self.needed else None
            if reason is not None:
                return f"{g.label(other)}: {reason}"
        return None

    def _held_around(self, node: ir.Node) -> dict[ir.Value, bool]:
        """The conditions of the Ifs around a node, which are as they must be for it to run."""
        held: dict[ir.Value, bool] = {}
        for graph in self.around(node):
            owner = self.owners.get(graph)
            if owner is not None and g.is_op(owner, "If") and owner.inputs[0] is not None:
                held.setdefault(owner.inputs[0], graph is g.attribute(owner, "then_branch"))
        return held

    def _running(self, node: ir.Node, supposed: Supposition) -> Iterator[ir.Node]:
        """The affected nodes that run whenever the If does, in an order in which they may run."""
        owned = [(graph, self.owners.get(graph)) for graph in self.around(node)]
        apart = {owner for _, owner in owned}
        for graph, owner in owned:
            yield from _run(graph, supposed, apart)
            if not g.is_op(owner, "If"):
                return  # around a loop the condition may differ from run to run of its body


def _run(graph: ir.Graph, supposed: Supposition, apart: set[ir.Node | None]) -> Iterator[ir.Node]:
    for node in graph:
        if node in supposed.affected and node not in apart:
            yield node
            taken = supposed.vector(node.inputs[0]) if g.is_op(node, "If") else None
            if taken in ((0,), (1,)):
                branch = g.attribute(node, "then_branch" if taken == (1,) else "else_branch")
                yield from _run(branch, supposed, apart)


def _needed(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that an output of the model needs; of an If only what its needed outputs come from."""
    needed: set[ir.Node] = set()
    seen: set[ir.Value] = set()
    stack = list(graph.outputs)
    while stack:
        value = stack.pop()
        node = value.producer()
        if value in seen or node is None:
            continue
        seen.add(value)
        needed.add(node)
        stack += [given for given in node.inputs if given is not None]
        index = node.outputs.index(value)
        for subgraph in g.subgraphs(node):
            stack += [subgraph.outputs[index]] if g.is_op(node, "If") else list(subgraph.outputs)
    return needed
