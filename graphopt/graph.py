"""Small questions and edits on an onnx-ir graph that the engine and every pass share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

DEFAULT_DOMAINS = ("", "ai.onnx")


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph that holds nodes: the main graph, function bodies, and all their subgraphs."""
    yield model.graph
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of every graph, in each graph's own order."""
    for graph in graphs(model):
        yield from graph


def function_graphs(model: ir.Model) -> set[ir.Graph]:
    """The graphs inside function bodies: they have no initializers and see no outer value."""
    bodies: set[ir.Graph] = set()
    for function in model.functions.values():
        bodies.add(function.graph)
        bodies.update(function.subgraphs())
    return bodies


def label(node: ir.Node) -> str:
    """How messages name a node: its name, or its type and first output when it has none."""
    if node.name:
        return f"{node.op_type} '{node.name}'"
    return f"{node.op_type} making '{output_name(node)}'"


def output_name(node: ir.Node) -> str:
    """The name of the first output that is not omitted; what a rewrite of this node is known by."""
    return next((value.name for value in node.outputs if value.name), "")


def input_name(node: ir.Node, index: int) -> str:
    """The name of an input; empty if it is omitted."""
    value = node.inputs[index]
    return (value.name or "") if value is not None else ""


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of these operators of the default ONNX domain."""
    return node is not None and node.domain in DEFAULT_DOMAINS and node.op_type in op_types


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute, or the default; ``KeyError`` if it refers to a function's attribute."""
    found = node.attributes.get(name)
    if found is None:
        return default
    if found.is_ref():
        raise KeyError(f"'{name}' of {label(node)} is a parameter of the function it stands in")
    return found.value


def has_subgraph(node: ir.Node) -> bool:
    """Whether an attribute of the node holds a graph (If, Loop, Scan, SequenceMap)."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def opset(model: ir.Model, graph: ir.Graph) -> int:
    """The default-domain opset in force in a graph: a function's own import, else the model's."""
    for function in model.functions.values():
        if graph is function.graph or any(graph is inner for inner in function.subgraphs()):
            return int(function.opset_imports.get("", 1))
    return int(model.opset_imports.get("", 1))


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that a value always holds: an initializer that no caller can override, or a Constant node's.

    An initializer that is listed as a graph input can be overridden (IR 4 and later; the pipeline
    unlists those of IR 3 models first), so it is no constant.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    producer = value.producer()
    return constant_node_tensor(producer) if producer is not None and is_op(producer, "Constant") else None


def is_overridable(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that callers may override, since it is listed as an input, too."""
    return value is not None and value.is_initializer() and value.is_graph_input()


_SCALARS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node in any of its spellings; ``None`` for sparse and referenced ones."""
    for name, found in node.attributes.items():
        if found.is_ref():
            return None
        if name == "value":
            tensor: ir.TensorProtocol = found.value
            return tensor
        if name in _SCALARS:
            return ir.Tensor(np.array(found.value, dtype=_SCALARS[name]))
        if name in ("value_string", "value_strings"):
            return _string_tensor(found.value)
    return None


def _string_tensor(text: str | tuple[str, ...]) -> ir.StringTensor:
    many = (text,) if isinstance(text, str) else text
    shape = ir.Shape(()) if isinstance(text, str) else ir.Shape((len(many),))
    return ir.StringTensor([item.encode() for item in many], shape=shape)


def array(value: ir.Value | None, limit: int | None = None) -> np.ndarray[Any, Any] | None:
    """A constant as numpy; ``None`` if it is none, or holds more than ``limit`` elements."""
    tensor = constant(value)
    if tensor is None or (limit is not None and tensor.size > limit):
        return None
    return tensor.numpy()


def rank(value: ir.Value | None) -> int | None:
    """The rank that the graph states for a value, or ``None``."""
    if value is None:
        return None
    tensor = constant(value)
    if tensor is not None:
        return len(tensor.shape)
    return None if value.shape is None else len(value.shape)


def can_replace(old: ir.Value, new: ir.Value) -> str | None:
    """Why ``new`` cannot stand in for ``old`` everywhere, or ``None`` when it can.

    A graph output keeps its name and its place, so its stand-in must be a node's output in the same
    graph that is no output itself.
    """
    if not old.is_graph_output():
        return None
    producer, old_producer = new.producer(), old.producer()
    if producer is None:
        return f"graph output '{old.name}' would become an input or initializer"
    if new.is_graph_output():
        return f"'{new.name}' and '{old.name}' are both graph outputs"
    if old_producer is None or producer.graph is not old_producer.graph:
        return f"graph output '{old.name}' would come from another graph"
    return None


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` take every use of ``old``, captures and graph outputs included; outputs keep their names.

    Raises:
        ValueError: when :func:`can_replace` says why not.
    """
    reason = can_replace(old, new)
    if reason is not None:
        raise ValueError(reason)
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return
    name, old.name = old.name, None
    new.name = name
    new.type, new.shape = old.type, old.shape
    new.doc_string = old.doc_string
    new.metadata_props.clear()
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def inherit(old: ir.Value, new: ir.Value) -> None:
    """Give a freshly made value the place of ``old``: its name, type, shape, documentation and uses."""
    name, old.name = old.name, None
    new.name, new.type, new.shape = name, old.type, old.shape
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def is_dead(node: ir.Node) -> bool:
    """Whether nothing uses any output of the node."""
    return not any(value.uses() or value.is_graph_output() for value in node.outputs)


def dying(root: ir.Node, spared: ir.Value | None = None) -> set[ir.Node]:
    """The nodes that only the root needs, itself included: they go when it goes.

    What ``spared`` depends on stays, as that value takes the place of the root's.
    """
    found = {root}
    stack = [value.producer() for value in root.inputs if value is not None]
    while stack:
        node = stack.pop()
        if node is None or node in found or spared in node.outputs:
            continue
        if _needed_only_by(node, found):
            found.add(node)
            stack += [value.producer() for value in node.inputs if value is not None]
    return found


def _needed_only_by(node: ir.Node, users: set[ir.Node]) -> bool:
    outputs = node.outputs
    return not any(v.is_graph_output() or any(use.node not in users for use in v.uses()) for v in outputs)


def remove(node: ir.Node) -> None:
    """Take a dead node out of its graph, detached from its inputs and from what its subgraphs capture."""
    assert node.graph is not None
    for subgraph in subgraphs(node):
        for inner in list(subgraph.all_nodes()):
            _detach(inner)
    _detach(node)
    node.graph.remove(node)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that the node's own attributes hold."""
    for found in node.attributes.values():
        if found.type is ir.AttributeType.GRAPH and not found.is_ref():
            yield found.as_graph()
        elif found.type is ir.AttributeType.GRAPHS and not found.is_ref():
            yield from found.as_graphs()


def defined(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values that a graph itself defines, each once: inputs, initializers and node outputs."""
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    for node in graph:
        yield from node.outputs


def captures(node: ir.Node) -> list[ir.Value]:
    """The values from outside that the node's subgraphs use, each once, in the order of their uses."""
    inside: set[ir.Value] = set()
    used: dict[ir.Value, None] = {}
    for subgraph in subgraphs(node):
        for graph in (subgraph, *subgraph.subgraphs()):
            inside.update(defined(graph))
            used.update(dict.fromkeys(v for inner in graph for v in inner.inputs if v is not None))
            used.update(dict.fromkeys(graph.outputs))
    return [value for value in used if value not in inside]


def reads(node: ir.Node) -> list[ir.Value]:
    """All values that a node reads: its inputs, those that are left out not counted, and its captures."""
    return [value for value in (*node.inputs, *captures(node)) if value is not None]


def _detach(node: ir.Node) -> None:
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)


class Names:
    """Fresh value names that no scope of the model uses, so that they can be captured anywhere."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: Counter[str] = Counter()
        for graph in graphs(model):
            self._taken.update(value.name for value in defined(graph) if value.name)

    def fresh(self, base: str) -> str:
        """``base`` itself when it is free, else ``base`` with the first free number behind it."""
        name, count = base, 0
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken[name] += 1
        return name

    def release(self, name: str) -> None:
        """Let a name be taken again, whose value is gone."""
        self._taken -= Counter([name])

    def is_unique(self, name: str) -> bool:
        """Whether one scope only defines the name; sibling branches may each have a value of one name."""
        return self._taken[name] <= 1
