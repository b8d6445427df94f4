"""eliminate-common-subexpressions: compute equal things once.

Two nodes are equal when operator, attributes and inputs are, and the operator is deterministic. The later one
goes; one in a subgraph also goes in favour of one that was computed before the control flow around it.
"""

from __future__ import annotations

import struct
from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Pass, Run
from graphopt.storage.weights import digest
from graphopt_passes.analysis.determinism import is_deterministic

if TYPE_CHECKING:
    from graphopt.model import Model

_COMMUTATIVE = ("Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
_PLAIN = (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.STRINGS)
_Seen = MutableMapping[object, ir.Node]


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Number values by structure and let the first node of each number stand for the others."""

    name = "eliminate-common-subexpressions"

    def apply(self, model: Model, run: Run) -> bool:
        """One sweep; replacing a node's outputs makes its consumers equal in the same sweep."""
        revision = run.journal.revision
        sweep = _Sweep(self.name, model.ir, run)
        sweep.visit(model.ir.graph, model.ir.opset_imports, ChainMap())
        for function in model.ir.functions.values():
            sweep.visit(function.graph, function.opset_imports, ChainMap())
        return run.journal.revision > revision


@dataclass(frozen=True)
class _Sweep:
    name: str
    model: ir.Model
    run: Run

    def visit(self, graph: ir.Graph, imports: Mapping[str, int], seen: ChainMap[object, ir.Node]) -> None:
        for node in graph:
            for subgraph in g.subgraphs(node):
                self.visit(subgraph, imports, seen.new_child())
            if self._may_share(node, imports):
                self._share(node, seen)

    def _may_share(self, node: ir.Node, imports: Mapping[str, int]) -> bool:
        if g.has_subgraph(node) or self.run.keeps(node):
            return False
        return is_deterministic(node, imports, self.model.functions)

    def _share(self, node: ir.Node, seen: _Seen) -> None:
        first = seen.setdefault(_structure(node), node)
        if first is node or g.is_dead(node):
            return
        pairs = list(zip(node.outputs, first.outputs, strict=True))
        reason = next(filter(None, (g.can_replace(old, new) for old, new in pairs)), None)
        if reason is not None:
            self.run.journal.refuse(self.name, g.label(node), reason)
        elif self.run.journal.admit(self.name, g.output_name(node)):
            for old, new in pairs:
                _merge(old, new)
            g.remove(node)


def _merge(old: ir.Value, new: ir.Value) -> None:
    if new.shape is None and not old.is_graph_output():
        new.shape = old.shape
    g.replace(old, new)


def _structure(node: ir.Node) -> object:
    """Equal for nodes that compute the same: operator, inputs, attributes, and which outputs exist."""
    inputs = [id(value) for value in node.inputs]
    if g.is_op(node, *_COMMUTATIVE):
        inputs.sort()
    while inputs and node.inputs[len(inputs) - 1] is None:
        inputs.pop()
    attributes = sorted((name, _content(found)) for name, found in node.attributes.items())
    present = tuple(bool(value.name) for value in node.outputs)
    return node.op_identifier(), tuple(inputs), tuple(attributes), present


def _content(attribute: ir.Attr) -> tuple[str, str, bytes]:
    """The attribute's type and value, compared exactly: NaN equals itself, 0.0 is not -0.0."""
    if attribute.is_ref():
        return "reference", attribute.ref_attr_name or "", b""
    kind, value = attribute.type.name, attribute.value
    if attribute.type is ir.AttributeType.TENSOR:
        return kind, f"{value.dtype}{tuple(value.shape.numpy())}", digest(value)
    if attribute.type is ir.AttributeType.FLOAT:
        return kind, "", struct.pack("<d", value)
    if attribute.type is ir.AttributeType.FLOATS:
        return kind, "", struct.pack(f"<{len(value)}d", *value)
    if attribute.type in _PLAIN:
        return kind, repr(value), b""
    return kind, str(id(value)), b""
