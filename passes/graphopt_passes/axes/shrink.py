"""A model without some of its channels, and the oracle for it: the whole with these made ineffective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.shapes.inference import Shapes
from graphopt.storage.spill import Spill
from graphopt_passes.axes.constants import Constants
from graphopt_passes.axes.edits import EDITS, Cuts, Edit, Kept, touched
from graphopt_passes.axes.groups import Group
from graphopt_passes.axes.rules import RULES
from graphopt_passes.axes.space import Port

assert RULES  # importing the rules fills EDITS


def shrink(model: Model, kept: Mapping[Group, Kept], spill: Spill | None = None) -> Model:
    """A copy without the units that are not kept; weights are cut, and all that states a size follows.

    Args:
        model: what the groups were found in; only read.
        kept: numbers of the units that stay, by group; others keep all.
        spill: where large new weights lie.

    Raises:
        ValueError: a group would have no units left, or units that it does not have.
        SystemRefusedError: a large weight is kept in a temporary file, and the disk is full.
    """
    cuts = Cuts(kept)
    copy = _Copy(model)
    constants = Constants(copy.model.ir, spill or Spill())
    opset = g.opset(model.ir, model.ir.graph)
    owners, shapes = cuts.owners(), cache(lambda: Shapes.infer(model))
    for who, axes in owners.items():
        if isinstance(who, Port):
            copy.read(who, constants.part(copy.at(who), axes))
        else:
            _state(copy.values[who], axes)
    for before, node in copy.nodes.items():
        if g.is_op(before, *EDITS) and touched(before, owners):
            EDITS[node.op_type](Edit(before, node, cuts, constants, shapes, opset))
    copy.clear()
    return copy.model


def masked(model: Model, kept: Mapping[Group, Kept], spill: Spill | None = None) -> Model:
    """A copy in which the units that are not kept have no effect: their consumers' operands are 0 there.

    It computes what :func:`shrink` gives, with nothing removed. Arguments and errors are those of ``shrink``.
    """
    copy = _Copy(model)
    constants = Constants(copy.model.ir, spill or Spill())
    masks: dict[tuple[Port, int], Kept] = {}
    for group, units in kept.items():
        for member in group.consumers:
            assert member.port is not None
            mask = masks.setdefault((member.port, member.axis), np.ones(len(member.units), np.bool_))
            mask &= group.chosen(units)[member.units]
    shapes = Shapes.infer(model)
    for (port, axis), mask in masks.items():
        fact = shapes.fact(port.value)
        assert fact.dims is not None and fact.dtype is not None, "an axis was cut"
        factor = mask.reshape(-1, *[1] * (len(fact.dims) - 1 - axis)).astype(fact.dtype.numpy())
        _mask(copy, port, factor, constants)
    copy.clear()
    return copy.model


def _mask(copy: _Copy, port: Port, factor: Kept, constants: Constants) -> None:
    """Multiply an operand by zeros and ones."""
    old, tensor = copy.at(port), g.constant(port.value)
    if tensor is not None:
        made = ir.Tensor(np.asarray(tensor.numpy() * factor.astype(tensor.dtype.numpy())), dtype=tensor.dtype)
        return copy.read(port, constants.new(made, old.name or "weight"))
    zeros = constants.new(factor, "mask")
    node, home = ir.Node("", "Mul", [old, zeros]), copy.nodes[port.node]
    node.outputs[0].name = constants.names.fresh(f"{old.name}_masked")
    node.outputs[0].type, node.outputs[0].shape = old.type, old.shape
    assert home.graph is not None
    home.graph.insert_before(home, [node])
    return copy.read(port, node.outputs[0])


class _Copy:
    """A clone of a model, and where its nodes and values have gone."""

    def __init__(self, model: Model) -> None:
        self.model = model.clone()
        pairs = list(zip(g.graphs(model.ir), g.graphs(self.model.ir), strict=True))
        self.nodes = {a: b for old, new in pairs for a, b in zip(old, new, strict=True)}
        self.values = {
            a: b for old, new in pairs for a, b in zip(g.defined(old), g.defined(new), strict=True)
        }
        self._replaced: dict[ir.Value, None] = {}

    def at(self, port: Port) -> ir.Value:
        """What an input reads in the copy."""
        return Port(self.nodes[port.node], port.index).value

    def read(self, port: Port, value: ir.Value) -> None:
        """Let an input read another value."""
        self._replaced[self.at(port)] = None
        self.nodes[port.node].replace_input_with(port.index, value)

    def clear(self) -> None:
        """Remove constants that nobody reads any longer."""
        for value in self._unused():
            producer = value.producer()
            if producer is not None:
                g.remove(producer)
            elif value.graph is not None:
                del value.graph.initializers[value.name or ""]

    def _unused(self) -> Iterator[ir.Value]:
        for value in self._replaced:
            if g.constant(value) is not None and not value.uses() and not value.is_graph_output():
                yield value


def _state(value: ir.Value, axes: Mapping[int, Kept]) -> None:
    """Correct the shape that the model states for a value."""
    if value.shape is None:
        return
    shape = value.shape.copy(frozen=False)
    for axis, kept in axes.items():
        if isinstance(shape[axis], int):
            shape[axis] = len(kept)
    value.shape = shape
