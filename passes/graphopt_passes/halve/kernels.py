"""Kernels that the runtime lacks: its refusal to load a model names a node that it has none for."""

from __future__ import annotations

import re
from collections.abc import Collection

import onnx
import onnx_ir as ir

from graphopt import graph as g

_REFUSAL = re.compile(r"Could not find an implementation for \w+\(\d+\) node with name '([^']*)'")


def name_all(model: ir.Model) -> None:
    """Give each node a name, by which a refusal can be told from one of what the runtime itself makes."""
    for node in g.nodes(model):
        node.name = node.name or f"{node.op_type} of {g.output_name(node)}"


def lacking(refusal: str, refused: ir.Model, model: ir.Model, halves: Collection[str]) -> list[str]:
    """The nodes that must stay float, by their first outputs; none if the refusal is of another kind.

    These are all of one operator. But an operator that ONNX defines by others, or that is ONNX Runtime's own,
    may be replaced when it is loaded; a node that the refused model does not hold comes of one of these.

    Args:
        refusal: what the runtime says.
        refused: the model in half, every node named.
        model: the same in float.
        halves: first outputs of the nodes in half.
    """
    if not (found := _REFUSAL.search(refusal)):
        return []
    named = next((node for node in g.nodes(refused) if node.name == found[1]), None)
    nodes = [node for node in g.nodes(model) if g.output_name(node) in halves]
    blamed = [node for node in nodes if (_is_replaced(node) if named is None else _is_alike(node, named))]
    return [g.output_name(node) for node in blamed]


def _is_alike(node: ir.Node, other: ir.Node) -> bool:
    return (node.domain, node.op_type) == (other.domain, other.op_type)


def _is_replaced(node: ir.Node) -> bool:
    """Whether an operator may become others at load."""
    if node.domain:
        return True
    schema = onnx.defs.get_schema(node.op_type)
    return any(getattr(schema, name) for name in ("has_function", "has_context_dependent_function"))
