"""What decides together whether values are half or float.

A *unit* is a node, or a junction: what an If's branches give and the If itself, what a Loop or Scan carries
around, what all calls of a function hand over. Whatever no unit makes or reads is float: the interface,
inputs that schemas or kernels want as float, and what belongs to operators that nothing describes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt import graph as g
from graphopt_passes.halve.signatures import TENSOR, Port, halved, is_float, may_be, signature_of
from graphopt_passes.halve.stated import is_stated
from graphopt_passes.halve.types import Types, is_derived, scan_offset

INTERFACE = "interface"
"""The unit of the model's own inputs and outputs, if these become half."""


@dataclass(frozen=True)
class Slot:
    """A place where a value is read: an input of a node, or an output of a graph."""

    owner: ir.Node | ir.Graph
    index: int

    @property
    def value(self) -> ir.Value | None:
        """What is read."""
        values = self.owner.outputs if isinstance(self.owner, ir.Graph) else self.owner.inputs
        return values[self.index] if self.index < len(values) else None

    def read(self, value: ir.Value) -> None:
        """Let another value be read."""
        if isinstance(self.owner, ir.Graph):
            self.owner.outputs[self.index] = value
        else:
            self.owner.replace_input_with(self.index, value)


@dataclass
class Units:
    """The units of a model.

    Attributes:
        makers: value → the unit that makes it.
        readers: where a value is read → the unit that reads it.
        nodes: unit → node, for those that are one.
        fixed: units that must be float, and why.
        slots: value → all places where it is read; values of 32-bit floats only.
    """

    model: ir.Model
    half: str
    types: Types
    makers: dict[ir.Value, str] = field(default_factory=dict)
    readers: dict[Slot, str] = field(default_factory=dict)
    nodes: dict[str, ir.Node] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    slots: dict[ir.Value, list[Slot]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, half: str, *, keep_io: bool) -> Units:
        """The units of a model; ``half`` is ``float16`` or ``bfloat16``."""
        found = cls(model, half, Types(model))
        skipped = found._without_casts() | found.types.unclear
        for graph in g.graphs(model):
            if graph not in skipped:
                found._graph(graph)
        found._functions(skipped)
        if not keep_io and model.graph not in skipped:
            found._interface()
        found._slots()
        return found

    def together(self) -> Iterator[Collection[str]]:
        """Units that must agree: a sequence or an optional cannot be cast."""
        for value, slots in self.slots.items():
            if value in self.makers and not self.types.of(value).startswith("tensor"):
                yield [self.makers[value], *(self.readers[slot] for slot in slots)]

    def _slots(self) -> None:
        for graph in g.graphs(self.model):
            for value in g.defined(graph):
                if is_float(self.types.of(value)):
                    self.slots[value] = []
        for slot in self._all_slots():
            if slot.value in self.slots:
                self.slots[slot.value].append(slot)
        self._fix_uncastable()

    def _all_slots(self) -> Iterator[Slot]:
        for graph in g.graphs(self.model):
            for node in graph:
                yield from (Slot(node, index) for index in range(len(node.inputs)))
            yield from (Slot(graph, index) for index in range(len(graph.outputs)))

    def _fix_uncastable(self) -> None:
        """What cannot be cast stays float if anybody who makes or reads it must."""
        for value, slots in self.slots.items():
            if self.types.of(value).startswith("tensor"):
                continue
            parties = [self.makers.get(value), *(self.readers.get(slot) for slot in slots)]
            if None in parties or value.is_graph_input():
                told = f"'{value.name}' is {self.types.of(value)}, which cannot be cast"
                self.fixed.update({unit: told for unit in parties if unit})
                self.makers.pop(value, None)
                for slot in slots:
                    self.readers.pop(slot, None)

    # Nodes.

    def _graph(self, graph: ir.Graph) -> None:
        for node in graph:
            if g.is_op(node, "If"):
                self._if(node)
            elif g.is_op(node, "Loop"):
                self._loop(node)
            elif g.is_op(node, "Scan"):
                self._scan(node)
            elif not g.has_subgraph(node) and not g.is_op(node, "Constant"):
                self._node(node)

    def _node(self, node: ir.Node) -> None:
        found = signature_of(node, self.model)
        if found is None or node.op_identifier() in self.model.functions:
            return
        unit = f"{len(self.nodes)} {g.output_name(node)}"
        inputs = [(value, found.input(i)) for i, value in enumerate(node.inputs) if value is not None]
        bound = is_stated(node) or is_derived(node)
        if any(self._is_unclear(value, port) for value, port in inputs):
            return
        for index, value in enumerate(node.inputs):
            if self._may_be_half(value, found.input(index)):
                self.readers[Slot(node, index)] = self._named(unit, node)
        for index, value in enumerate(node.outputs):
            port = found.output(index)
            if self._may_be_half(value, port) and (bound or found.is_bound(port.variable)):
                self.makers[value] = self._named(unit, node)

    def _named(self, unit: str, node: ir.Node) -> str:
        self.nodes[unit] = node
        return unit

    def _may_be_half(self, value: ir.Value | None, port: Port) -> bool:
        text = self.types.of(value)
        return is_float(text) and halved(text, self.half) in port.types

    def _is_unclear(self, value: ir.Value, port: Port) -> bool:
        """Whether a value of unknown type would have to follow."""
        return not self.types.of(value) and any(is_float(text) for text in port.types)

    # Junctions.

    def _if(self, node: ir.Node) -> None:
        branches = list(g.subgraphs(node))
        for index, output in enumerate(node.outputs):
            self._junction(node, [Slot(branch, index) for branch in branches], [output])

    def _loop(self, node: ir.Node) -> None:
        (body,) = g.subgraphs(node)
        states = len(node.inputs) - 2
        for index, output in enumerate(node.outputs):
            slots, made = [Slot(body, 1 + index)], [output]
            if index < states:
                slots.append(Slot(node, 2 + index))
                made.append(body.inputs[2 + index])
            self._junction(node, slots, made)

    def _scan(self, node: ir.Node) -> None:
        (body,) = g.subgraphs(node)
        offset = scan_offset(self.model, node)
        states = len(body.inputs) - int(g.attribute(node, "num_scan_inputs"))
        for index, output in enumerate(node.outputs):
            slots, made = [Slot(body, index)], [output]
            if index < states:
                slots.append(Slot(node, offset + index))
                made.append(body.inputs[index])
            self._junction(node, slots, made)
        for index in range(states, len(body.inputs)):
            self._junction(node, [Slot(node, offset + index)], [body.inputs[index]])

    def _without_casts(self) -> set[ir.Graph]:
        """The graphs whose opset has no Cast to half; functions may not even import its domain."""
        bodies = [self.model.graph, *(function.graph for function in self.model.functions.values())]
        versions = {body: body.opset_imports.get("") for body in bodies}
        without = [body for body, v in versions.items() if not _casts(v, self.half)]
        return {graph for body in without for graph in (body, *body.subgraphs())}

    def _functions(self, skipped: Collection[ir.Graph]) -> None:
        calls: dict[ir.Function, list[ir.Node]] = {}
        for node in g.nodes(self.model):
            function = self.model.functions.get(node.op_identifier())
            if function is not None:
                calls.setdefault(function, []).append(node)
        for function, nodes in calls.items():
            if function.graph in skipped or any(node.graph in skipped for node in nodes):
                continue
            for index, value in enumerate(function.inputs):
                self._junction(nodes[0], [Slot(node, index) for node in nodes], [value])
            for index in range(len(function.outputs)):
                made = [node.outputs[index] for node in nodes if index < len(node.outputs)]
                self._junction(nodes[0], [Slot(function.graph, index)], made)

    def _junction(self, node: ir.Node, slots: Sequence[Slot], made: Sequence[ir.Value]) -> None:
        """All of these values have one type; a junction of anything but floats is none."""
        texts = {self.types.of(value) for value in [*(slot.value for slot in slots), *made]}
        if len(texts) != 1 or not is_float(next(iter(texts))):
            return
        assert made
        unit = f"junction {len(self.makers)} {made[0].name}"
        self.readers.update(dict.fromkeys(slots, unit))
        self.makers.update(dict.fromkeys(made, unit))

    def _interface(self) -> None:
        graph = self.model.graph
        for value in graph.inputs:
            if self.types.of(value) == TENSOR:
                self.makers[value] = INTERFACE
        for index, value in enumerate(graph.outputs):
            if self.types.of(value) == TENSOR:
                self.readers[Slot(graph, index)] = INTERFACE


def _casts(version: int | None, half: str) -> bool:
    """Whether an opset has a Cast to half; before 6 its attribute was a text."""
    return version is not None and version >= 6 and may_be("Cast", version, half)
