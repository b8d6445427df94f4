"""Where the channels lie in values that scale together, and what each factor divides or multiplies there.

The axes engine (:mod:`graphopt_passes.axes`) carries the channels through whatever moves them, so a factor
finds its elements behind Transpose, Slice, Concat and Flatten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.rewrite import RefusedError
from graphopt.shapes.inference import Shapes
from graphopt_passes.axes.rules import RULES
from graphopt_passes.axes.site import Site
from graphopt_passes.axes.space import Owner, Port, Space, freeze, side
from graphopt_passes.quantize.layers import LINEAR, Layer, replace_constant
from graphopt_passes.quantize.scaled import Scaled, require
from graphopt_passes.quantize.scheme import Array

Doubles = NDArray[np.float64]
Units = NDArray[np.int64]

_AXIS_1 = ("BatchNormalization", "Conv", "InstanceNormalization")


@dataclass(frozen=True)
class Member:
    """A layer that makes or reads channels, and the number of the factor of each.

    Attributes:
        layer: the layer.
        units: of its rows if it makes them, of its columns if it reads them; -1 where there is none.
    """

    layer: Layer
    units: Units

    def factors(self, factor: Doubles) -> Doubles:
        """The factor of each row or column; 1 where there is none."""
        return np.append(factor, 1.0)[self.units]


@dataclass(frozen=True)
class Constant:
    """A constant that is divided.

    Attributes:
        port: who reads it.
        units: the numbers of the factors along an axis.
        behind: how many axes lie behind that one.
    """

    port: Port
    units: Units
    behind: int

    def sizes(self, width: int) -> Doubles:
        """The largest of its absolute numbers by factor, [width]."""
        numbers = np.abs(self._stored.astype(np.float64))
        spread = np.broadcast_to(numbers, np.broadcast_shapes(numbers.shape, self._shape))
        flat = np.moveaxis(spread, -1 - self.behind, 0).reshape(len(self.units), -1).max(axis=1)
        return largest(flat, self.units, width)

    def divide(self, model: Model, run: Run, factor: Doubles) -> None:
        """Divide its numbers; it gets the axis if it had none."""
        by = np.append(factor, 1.0)[self.units].reshape(self._shape)
        if (by != 1).any():
            divided = (self._stored / by).astype(self._stored.dtype)
            replace_constant(model, run, self.port.node, self.port.index, divided)

    @property
    def _stored(self) -> Array:
        found = g.array(self.port.value)
        assert found is not None
        return found

    @property
    def _shape(self) -> tuple[int, ...]:
        return (len(self.units), *[1] * self.behind)


@dataclass(frozen=True)
class Scaling:
    """Channels that can be divided by a factor each without a change of what the model computes.

    Attributes:
        name: of the first value that was asked for.
        values: all that are divided.
        width: how many factors there are.
        makers: layers whose rows are divided.
        readers: layers whose columns are multiplied.
        constants: what else is divided.
    """

    name: str
    values: frozenset[ir.Value]
    width: int
    makers: tuple[Member, ...]
    readers: tuple[Member, ...]
    constants: tuple[Constant, ...]

    def bias(self) -> Doubles:
        """The size of all that is added, [width]."""
        return sum((constant.sizes(self.width) for constant in self.constants), start=np.zeros(self.width))

    def divide_constants(self, model: Model, run: Run, factor: Doubles) -> None:
        """Divide everything but the weights of layers, float64 [width]."""
        for constant in self.constants:
            constant.divide(model, run, factor)

    def divide(self, model: Model, run: Run, factor: Doubles) -> None:
        """Divide the channels by positive factors, float64 [width]."""
        self.divide_constants(model, run, factor)
        for member in self.makers:
            layer = member.layer
            layer.scale(model, run, 1 / member.factors(factor), np.ones(layer.inputs))
        for member in self.readers:
            layer = member.layer
            layer.scale(model, run, np.ones(layer.channels), member.factors(factor))


def largest(numbers: Doubles, units: Units, width: int) -> Doubles:
    """The largest of the numbers of each unit, at least 0, [width]."""
    found = np.zeros(width + 1)
    with np.errstate(invalid="ignore"):  # NaN is the largest
        np.maximum.at(found, units, numbers)
    return found[:width]


def find_scalings(model: Model, run: Run, rule: str) -> Iterator[Scaling]:
    """Around every value that a layer reads, in the order of the graph; the journal gets reasons for none."""
    known: set[ir.Value] = set()
    for node in g.nodes(model.ir):
        if not g.is_op(node, *LINEAR) or g.constant(node.inputs[1]) is None:
            continue
        value = node.inputs[0]
        if value is None or value in known:
            continue
        known.add(value)
        try:
            found = scaling(value, model, run)
        except RefusedError as refused:
            run.journal.refuse(rule, f"'{value.name}'", str(refused.args[0]))
            continue
        known |= found.values
        yield found


def scaling(value: ir.Value, model: Model, run: Run) -> Scaling:
    """How the channels of a value that a layer reads can be divided.

    Raises:
        RefusedError: they cannot; the text says why.
    """
    scaled = Scaled.around(value, run)
    places = _Places(scaled, run.shapes(model))
    makers = tuple(Member(layer, places.along(layer.node.outputs[0])) for layer in scaled.makers.values())
    readers = tuple(_reader(layer, places.along(_read(layer))) for layer in scaled.readers.values())
    for member in makers:
        require(
            len(member.units) == member.layer.channels, f"{g.label(member.layer.node)} has other channels"
        )
    for member in readers:
        require(
            len(member.units) == member.layer.inputs, f"{g.label(member.layer.node)} reads other channels"
        )
    constants = tuple(places.constant(port) for port in scaled.divided)
    return Scaling(value.name or "", frozenset(scaled.values), places.width, makers, readers, constants)


def _reader(layer: Layer, units: Units) -> Member:
    """Neighbours with one factor, such as the pixels of a channel behind Flatten, count as one column."""
    count = len(np.unique(units))
    if 0 < count < len(units) and layer.groups == 1 and len(units) % count == 0:
        first = units[:: len(units) // count]
        if np.array_equal(np.repeat(first, len(units) // count), units):
            return Member(replace(layer, inputs=count), first)
    return Member(layer, units)


def _read(layer: Layer) -> ir.Value:
    value = layer.node.inputs[0]
    assert value is not None
    return value


def _require_own(port: Port, channels: int, behind: int) -> None:
    """A constant that varies along other axes only would become many times as large."""
    tensor = g.constant(port.value)
    assert tensor is not None
    shape = tensor.shape.numpy()
    own = len(shape) > behind and shape[len(shape) - 1 - behind] == channels
    require(own or tensor.size == 1, f"'{port.value.name}' has no numbers of its own for channels")


class _Places:
    """The axis of the channels of each value, and the factor of each of its elements."""

    def __init__(self, scaled: Scaled, shapes: Shapes) -> None:
        self.space = Space(shapes)
        for node in scaled.passed:
            self._walk(node)
        self.fixed: dict[ir.Value, int] = {}  # axes that layers and normalizations ask for
        for layer in scaled.readers.values():
            self._fix(layer.node, _read(layer), layer.inputs)
        for layer in scaled.makers.values():
            self._fix(layer.node, layer.node.outputs[0], layer.channels)
        self.space.choose()
        inputs = [_read(layer) for layer in scaled.readers.values()]
        self._units = np.unique(np.concatenate([self._ids(value, self.fixed[value]) for value in inputs]))
        self.width = len(self._units)
        self._at = {value: self._place(value) for value in scaled.values}

    def along(self, value: ir.Value) -> Units:
        """The numbers of the factors along a value's channels."""
        return self._at[value][1]

    def constant(self, port: Port) -> Constant:
        """Where a constant is divided."""
        node = port.node
        if g.is_op(node, "Concat"):
            axis, units = self._place(port)
            return Constant(port, units, self._rank(port) - 1 - axis)
        axis, units = self._at[node.outputs[0]]
        rank = self._rank(node.outputs[0])
        if g.is_op(node, *_AXIS_1):
            require(axis == 1, f"{g.label(node)} has its channels along another axis")
            return Constant(port, units, 0)
        if g.is_op(node, "LayerNormalization", "RMSNormalization"):
            over = int(g.attribute(node, "axis", -1)) % rank
            require(axis >= over, f"{g.label(node)} does not normalize over the channels")
        _require_own(port, len(units), rank - 1 - axis)
        return Constant(port, units, rank - 1 - axis)

    def _walk(self, node: ir.Node) -> None:
        try:
            RULES[node.op_type](Site.of(node, self.space))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RefusedError(f"what {g.label(node)} does with channels is not known") from error

    def _fix(self, node: ir.Node, value: ir.Value, size: int) -> None:
        """Channels lie along axis 1 of what a Conv reads and makes, else along the last one."""
        rank = self._rank(value)
        axis = 1 if g.is_op(node, "Conv") else rank - 1
        other = self.fixed.setdefault(value, axis) != axis
        require(not other, f"{g.label(node)} has the channels of '{value.name}' along another axis")
        freeze(side(self.space, value), "no channels", [at for at in range(rank) if at != axis])
        self.space.ids(value, axis, size)  # known by its weight even if the dim is not

    def _rank(self, owner: Owner) -> int:
        found = side(self.space, owner)
        name = owner.value.name if isinstance(owner, Port) else owner.name
        require(found is not None, f"the rank of '{name}' is not known")
        assert found is not None
        return found.rank

    def _ids(self, owner: Owner, axis: int) -> Units:
        found = self.space.axes.get((owner, axis), np.empty(0, np.int64))
        return self.space.elements.find(found)

    def _place(self, owner: Owner) -> tuple[int, Units]:
        """The one axis that has factors, and their numbers."""
        name = owner.value.name if isinstance(owner, Port) else owner.name
        found = []
        for axis in range(self._rank(owner)):
            ids = self._ids(owner, axis)
            at = np.minimum(np.searchsorted(self._units, ids), self.width - 1)
            units = np.where(self._units[at] == ids, at, -1)
            if (units >= 0).any():
                found.append((axis, units))
        require(len(found) == 1, f"the channels of '{name}' do not lie along one of its axes")
        asked = self.fixed.get(owner, found[0][0]) if isinstance(owner, ir.Value) else found[0][0]
        require(asked == found[0][0], f"the channels of '{name}' lie along another axis")
        return found[0]
