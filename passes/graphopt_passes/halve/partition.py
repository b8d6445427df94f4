"""Which units are half: the labelling that moves the fewest bytes, by a minimum cut.

A node reads and writes 4 bytes for each element on floats and 2 on halves; a Cast moves 6, and is a kernel
more. What multiplies with weights, or is a fused kernel of ONNX Runtime, is half in any case: that is what
was asked for. So casts stand where values are small, and a cheap node between two that must stay float
becomes float with them. The cut is that of :mod:`graphopt_passes.quantize.partition`, halves taking the
place of integers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from graphopt import graph as g
from graphopt.cost import macs_of
from graphopt.shapes.inference import Shapes
from graphopt_passes.halve.contrib import DOMAIN
from graphopt_passes.halve.units import INTERFACE, Units
from graphopt_passes.quantize.partition import Choice, Costs, Crossing, cheapest

_FLOAT_BYTES, _HALF_BYTES = 4.0, 2.0
_CAST_BYTES = _FLOAT_BYTES + _HALF_BYTES
_KERNEL_BYTES = 2.0**20  # what starting a kernel is worth: a microsecond, in which a GPU moves a megabyte
_UNKNOWN_DIM = 64  # what a dynamic dim counts as
_ITERATIONS = 8  # of a Loop or Scan


@dataclass(frozen=True)
class Partition:
    """Decides for a model.

    Attributes:
        units: of the model.
        kept: first outputs of nodes that must stay float.
        shapes: of the model.
        sizes: elements of values, where they are known better than from the shapes.
    """

    units: Units
    kept: Collection[str]
    shapes: Shapes
    sizes: Mapping[str, float]

    def halves(self) -> frozenset[str]:
        """The units that are half."""
        return cheapest(Costs(self._choices(), list(self._crossings()), list(self.units.together()))).integers

    def _choices(self) -> dict[str, Choice]:
        choices = {unit: self._choice(node) for unit, node in self.units.nodes.items()}
        junctions = {*self.units.makers.values(), *self.units.readers.values()} - choices.keys()
        choices.update({unit: Choice(0.0, 0.0) for unit in junctions})
        if INTERFACE in junctions:
            choices[INTERFACE] = Choice(math.inf, 0.0)
        choices.update({unit: Choice(0.0, None) for unit in self._floats})
        return choices

    def _choice(self, node: ir.Node) -> Choice:
        if node.domain == DOMAIN or macs_of(node, self.shapes) != 0:
            return Choice(math.inf, 0.0)
        moved = sum(self._elements(value) for value in (*node.inputs, *node.outputs) if value is not None)
        return Choice(_FLOAT_BYTES * moved, _HALF_BYTES * moved)

    @cached_property
    def _floats(self) -> frozenset[str]:
        """The units that must be float, with those that must agree with one of them."""
        units = self.units
        found = {unit for unit, node in units.nodes.items() if g.output_name(node) in self.kept}
        found.update(units.fixed)
        groups = [set(group) for group in units.together()]
        while grown := [group for group in groups if group & found and not group <= found]:
            found.update(*grown)
        return frozenset(found)

    def _crossings(self) -> Iterator[Crossing]:
        for value, slots in self.units.slots.items():
            if g.constant(value) is not None or not self.units.types.of(value).startswith("tensor"):
                continue
            readers = {self.units.readers.get(slot) for slot in slots}
            cost = _CAST_BYTES * self._elements(value) + _KERNEL_BYTES * self._times(value)
            named = sorted(unit for unit in readers if unit is not None)
            yield Crossing(self.units.makers.get(value), named, cost, cost, read_as_float=None in readers)

    def _elements(self, value: ir.Value) -> float:
        if (known := self.sizes.get(value.name or "")) is not None:
            return known
        dims = self.shapes.dims(value)
        size = math.prod(dim if isinstance(dim, int) else _UNKNOWN_DIM for dim in dims or ())
        return float(size * self._times(value))

    def _times(self, value: ir.Value) -> int:
        """How often a run makes the value, as far as that can be guessed."""
        producer = value.producer()
        graph, times = value.graph if producer is None else producer.graph, 1
        while (owner := self._owners.get(graph)) is not None:
            times *= _ITERATIONS if g.is_op(owner, "Loop", "Scan") else 1
            graph = owner.graph
        return times

    @cached_property
    def _owners(self) -> dict[object, ir.Node]:
        """Graph → the node that it is a body of."""
        return {graph: node for node in g.nodes(self.units.model) for graph in g.subgraphs(node)}
