"""Two models of the same inputs as one, so that one session runs both on each sample.

A model that is changed layer by layer, the *student*, is fitted to what the layers of the original, the
*teacher*, give. Sums of products of both need their activations at the same time. So the student's nodes are
put behind the teacher's, under other names; inputs and tensors that both hold exist once.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model


@dataclass(frozen=True)
class Joint:
    """Teacher and student as one model.

    Attributes:
        model: with the nodes of both; its outputs are the teacher's.
        teacher: the original.
        prefix: stands before the student's names in the model.
        inputs: the names of what both read; none if one runs for both.
    """

    model: Model
    teacher: Model
    prefix: str
    inputs: frozenset[str]

    def students(self, name: str) -> str:
        """The name in the model of a value of the student."""
        return name if name in self.inputs else self.prefix + name


def side_by_side(teacher: Model, student: Model) -> Joint:
    """Both as one model.

    Args:
        teacher, student: are not changed. Their inputs are the same, in this order, and so are their opsets
            and functions; the student descends from the teacher. If it is the teacher, one runs for both.
    """
    if student is teacher:
        return Joint(teacher.clone(), teacher, "", frozenset())
    joint, twin = teacher.clone(), student.clone()
    prefix = _free_prefix(joint.ir, twin.ir)
    _share_inputs(joint.ir.graph, twin.ir.graph)
    _move_initializers(joint.ir.graph, twin.ir.graph, prefix)
    _rename(twin.ir.graph, prefix)
    nodes = list(twin.ir.graph)
    twin.ir.graph.outputs.clear()
    twin.ir.graph.remove(nodes)
    joint.ir.graph.extend(nodes)
    model = Model(joint.ir, teacher.path, teacher.data_files | student.data_files)
    return Joint(model, teacher, prefix, frozenset(value.name or "" for value in teacher.ir.graph.inputs))


def _free_prefix(*models: ir.Model) -> str:
    """A prefix with which no name begins."""
    names = {value.name or "" for model in models for graph in g.graphs(model) for value in g.defined(graph)}
    prefix = "student."
    while any(name.startswith(prefix) for name in names):
        prefix = "_" + prefix
    return prefix


def _share_inputs(home: ir.Graph, guest: ir.Graph) -> None:
    """Let the guest read the inputs of the home."""
    for own, other in zip(home.inputs, guest.inputs, strict=True):
        other.replace_all_uses_with(own, replace_graph_outputs=True)


def _move_initializers(home: ir.Graph, guest: ir.Graph, prefix: str) -> None:
    """The guest's initializers under new names; one whose tensor the home holds as well is the home's."""
    held = {id(value.const_value): value for value in home.initializers.values()}
    for name, value in list(guest.initializers.items()):
        if value.is_graph_input():
            continue
        own = held.get(id(value.const_value))
        if own is None:  # a new value, since renaming one renames the tensor that it shares
            own = ir.Value(
                name=prefix + name, type=value.type, shape=value.shape, const_value=value.const_value
            )
            home.register_initializer(own)
        value.replace_all_uses_with(own, replace_graph_outputs=True)


def _rename(guest: ir.Graph, prefix: str) -> None:
    """New names for what nodes make and for the nodes themselves, in all graphs."""
    for graph in (guest, *guest.subgraphs()):
        for node in graph:
            node.name = prefix + node.name if node.name else node.name
            for value in node.outputs:
                value.name = prefix + value.name if value.name else value.name
    for graph in guest.subgraphs():
        for value in graph.inputs:
            value.name = prefix + (value.name or "")
