"""The axes of a model's values, made of elements, and what the rules of operators say about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.shapes.inference import Shapes
from graphopt.shapes.symbols import Dim
from graphopt_passes.axes.elements import Elements, Ids


@dataclass(frozen=True)
class Port:
    """An input of a node.

    Attributes:
        node: the node.
        index: which of its inputs.
    """

    node: ir.Node
    index: int

    @property
    def value(self) -> ir.Value:
        """What the node reads there."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value


Owner = ir.Value | Port
"""Who has axes: a value, or for a constant each input that reads it: each can read another cut."""


@dataclass(frozen=True)
class Option:
    """One way to carry axes through a node that allows only one of several.

    Attributes:
        count: how many units could be cut this way.
        favoured: whether it comes before all others.
        apply: takes it.
    """

    count: Callable[[], int]
    favoured: Callable[[], bool]
    apply: Callable[[], None]


@dataclass(frozen=True)
class Link:
    """A node makes channels from, or sums over them with, one axis of an operand."""

    port: Port
    axis: int


@dataclass
class Space:
    """What is found out about a model while rules walk over its nodes.

    Attributes:
        shapes: what is proved about dims.
        elements: of all axes whose dims are numbers.
        axes: the elements of each axis.
        producers: operands that make channels.
        consumers: operands whose zeros take channels out of a sum.
        fixed: values that are computed from constants only.
        choices: to be made when all else is known, in the order of the graph.
    """

    shapes: Shapes
    elements: Elements = field(default_factory=Elements)
    axes: dict[tuple[Owner, int], Ids] = field(default_factory=dict)
    producers: list[Link] = field(default_factory=list)
    consumers: list[Link] = field(default_factory=list)
    fixed: set[ir.Value] = field(default_factory=set)
    choices: list[list[Option]] = field(default_factory=list)

    def is_fixed(self, value: ir.Value | None) -> bool:
        """Whether a value is a constant, or computed from constants only: a weight."""
        return value in self.fixed or g.constant(value) is not None

    def note_fixed(self, node: ir.Node) -> None:
        """Note what a node computes from constants only."""
        if all(value is None or self.is_fixed(value) for value in node.inputs) and not g.has_subgraph(node):
            self.fixed.update(node.outputs)

    def ids(self, owner: Owner, axis: int, size: int) -> Ids:
        """The elements of an axis, made when it is first asked for."""
        if (owner, axis) not in self.axes:
            self.axes[owner, axis] = self.elements.add(size)
        return self.axes[owner, axis]

    def choose(self) -> None:
        """Make all choices: the favoured first, then the one that leaves the most units to choose from."""
        for options in self.choices:
            best = max(options, key=lambda option: (option.favoured() and option.count() > 1, option.count()))
            best.apply()


NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Side:
    """An input or output of a node.

    Attributes:
        owner: of its axes.
        value: what it carries.
        dims: proved dims.
        space: where its axes are.
    """

    owner: Owner
    value: ir.Value
    dims: tuple[Dim, ...]
    space: Space

    @property
    def rank(self) -> int:
        """The number of dims."""
        return len(self.dims)

    def ids(self, axis: int) -> Ids:
        """The elements of an axis; none if its dim is no number."""
        size = self.dims[axis]
        return self.space.ids(self.owner, axis % self.rank, size) if isinstance(size, int) else NOTHING


def side(space: Space, owner: Owner) -> Side | None:
    """A value or constant operand with its dims; ``None`` if its rank is not known."""
    value = owner.value if isinstance(owner, Port) else owner
    dims = space.shapes.dims(value)
    return None if dims is None else Side(owner, value, dims, space)


def owner(node: ir.Node, index: int) -> Owner | None:
    """Who has the axes of an input; ``None`` for an omitted one."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    return value if g.constant(value) is None else Port(node, index)


def freeze(side: Side | None, reason: str, axes: Sequence[int] | None = None) -> None:
    """Keep all elements of some axes, or of all."""
    if side is not None:
        for axis in range(side.rank) if axes is None else axes:
            side.space.elements.freeze(side.ids(axis), reason)
