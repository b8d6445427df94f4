"""Write down which units are half: the types of values, what states them, weights, and the Casts between.

Each value has one type; whoever needs the other reads one Cast of it, which stands right behind the value.
Weights are converted rather than cast, and stored twice only if both types of them are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Run
from graphopt_passes.halve.signatures import TENSOR, halved
from graphopt_passes.halve.stated import is_stated, state
from graphopt_passes.halve.units import Slot, Units
from graphopt_passes.halve.weights import Weights

if TYPE_CHECKING:
    from graphopt.model import Model

RULE = "halve"


@dataclass
class Writer:
    """Writes down which units are half."""

    model: Model
    run: Run
    dtype: ir.DataType
    units: Units
    chosen: frozenset[str]
    weights: Weights
    casts: int = field(default=0)
    emulate: ClassVar[bool] = False

    def write(self) -> None:
        """Change the model."""
        for value, slots in list(self.units.slots.items()):
            wanting = [slot for slot in slots if self.units.readers.get(slot) in self.chosen]
            others = [slot for slot in slots if slot not in wanting]
            if g.constant(value) is not None:
                self._constant(value, wanting, others)
            elif self.units.makers.get(value) in self.chosen:
                self._made_half(value, wanting, others)
            else:
                self._cast(value, wanting, self.dtype)
        nodes = [node for unit, node in self.units.nodes.items() if unit in self.chosen]
        self._finish(nodes)
        self.run.journal.admit(RULE, "the model")

    def _made_half(self, value: ir.Value, wanting: Sequence[Slot], others: Sequence[Slot]) -> None:
        self._retype(value)
        self._cast(value, others, ir.DataType.FLOAT)

    def _finish(self, nodes: Sequence[ir.Node]) -> None:
        for node in nodes:
            if is_stated(node) and node.outputs[0] in self.units.makers:
                state(node, self.dtype)
        for node in nodes:
            self._drop_idle(node)

    def _retype(self, value: ir.Value) -> None:
        if value.type is not None or self.units.types.of(value) == TENSOR:
            value.type = _typed(value.type, self.dtype)
        if value.is_graph_input() and value.const_value is not None:
            value.const_value = self._converted(value.const_value, value.name or "")

    # Weights.

    def _constant(self, value: ir.Value, wanting: Sequence[Slot], others: Sequence[Slot]) -> None:
        tensor = g.constant(value)
        if not wanting or tensor is None:
            return
        if others:
            new = self._second(value, tensor)
            for slot in wanting:
                slot.read(new)
            return
        converted, producer = self._converted(tensor, value.name or ""), value.producer()
        value.type = ir.TensorType(converted.dtype)
        if producer is None:
            value.const_value = converted
        else:
            producer.attributes.clear()
            producer.attributes["value"] = ir.AttrTensor("value", converted)

    def _second(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        """The half form of a constant that is read as float too, visible wherever that one is."""
        name = self.run.names(self.model).fresh(f"{value.name}_{self.dtype.name.lower()}")
        converted, producer = self._converted(tensor, name), value.producer()
        kind, shape = ir.TensorType(converted.dtype), ir.Shape(tensor.shape.numpy())
        if producer is None:
            assert value.graph is not None
            new = ir.Value(name=name, type=kind, shape=shape, const_value=converted)
            value.graph.register_initializer(new)
            return new
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", converted)], name=name)
        assert producer.graph is not None
        producer.graph.insert_after(producer, [node])
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, kind, shape
        return node.outputs[0]

    def _converted(self, tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        return self.weights.converted(tensor, name, emulate=self.emulate)

    # Casts.

    def _cast(self, value: ir.Value, slots: Sequence[Slot], *dtypes: ir.DataType) -> None:
        """Let these places read a Cast, or several in a row, of the value."""
        if not slots:
            return
        behind = value
        for dtype in dtypes:
            behind = self._one_cast(behind, dtype)
        for slot in slots:
            slot.read(behind)
        if any(slot.owner is self.model.ir.graph for slot in slots):
            self._swap_names(value, behind)
        elif any(isinstance(slot.owner, ir.Graph) for slot in slots) and value.producer() is not None:
            value.shape = None  # what a body states of its outputs need not be true, of inner values it must

    def _one_cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))])
        name = self.run.names(self.model).fresh(f"{value.name}_{dtype.name.lower()}")
        node.name = node.outputs[0].name = name
        node.outputs[0].type = ir.TensorType(dtype)  # no shape, which might be wrong
        self._insert_behind(value, node)
        self.casts += 1
        return node.outputs[0]

    @staticmethod
    def _insert_behind(value: ir.Value, node: ir.Node) -> None:
        producer = value.producer()
        graph = value.graph if producer is None else producer.graph
        assert graph is not None
        if producer is not None:
            graph.insert_after(producer, [node])
        elif len(graph):
            graph.insert_before(graph[0], [node])
        else:
            graph.append(node)

    def _swap_names(self, value: ir.Value, output: ir.Value) -> None:
        """The model's output keeps its name and all that is said of it; an input keeps its own, too."""
        if value.is_graph_input():
            return
        name, fresh = value.name, output.name
        value.name, output.name = None, name
        value.name, output.shape = fresh, value.shape
        output.doc_string, value.doc_string = value.doc_string, None
        output.metadata_props.update(value.metadata_props)
        value.metadata_props.clear()

    def _is_half(self, value: ir.Value) -> bool:
        made = self.units.makers.get(value) in self.chosen
        return made or self.units.types.of(value) == halved(TENSOR, self.units.half)

    def _drop_idle(self, node: ir.Node) -> None:
        """Remove a Cast of the model's own that has nothing to do any more."""
        if not g.is_op(node, "Cast") or node.graph is None or node.inputs[0] is None:
            return
        value, result = node.inputs[0], node.outputs[0]
        if not (self._is_half(value) and self._is_half(result)) or g.can_replace(result, value):
            return
        g.replace(result, value)
        g.remove(node)


def _typed(kind: ir.TypeProtocol | None, dtype: ir.DataType) -> ir.TypeProtocol:
    """A type with another element type; a tensor's if there is none."""
    if isinstance(kind, ir.SequenceType):
        return ir.SequenceType(_typed(kind.elem_type, dtype), denotation=kind.denotation)
    if isinstance(kind, ir.OptionalType):
        return ir.OptionalType(_typed(kind.elem_type, dtype), denotation=kind.denotation)
    denotation = kind.denotation if isinstance(kind, ir.TensorType) else None
    return ir.TensorType(dtype, denotation=denotation)
