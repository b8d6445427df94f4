"""What the rule of an operator is handed: a node, its operands, and what can be said of axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import RefusedError
from graphopt.shapes.rules import At
from graphopt_passes.axes.elements import Ids
from graphopt_passes.axes.space import Link, Option, Port, Side, Space, freeze, owner, side


@dataclass(frozen=True)
class Site:
    """A node among the axes of its model."""

    node: ir.Node
    space: Space
    at: At

    @classmethod
    def of(cls, node: ir.Node, space: Space) -> Site:
        """A node with what is proved of its inputs."""
        return cls(node, space, space.shapes.at(node))

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return self.at.attr(name, default)

    def has(self, index: int) -> bool:
        """Whether an input is present."""
        return self.at.has(index)

    def has_output(self, index: int) -> bool:
        """Whether an output is present and used."""
        outputs = self.node.outputs
        return index < len(outputs) and bool(outputs[index].uses() or outputs[index].is_graph_output())

    def input(self, index: int = 0) -> Side:
        """An input.

        Raises:
            RefusedError: it is omitted, or its rank is not known.
        """
        found = owner(self.node, index)
        if found is None:
            raise RefusedError(f"input {index} is missing")
        return self._known(found)

    def output(self, index: int = 0) -> Side:
        """An output.

        Raises:
            RefusedError: its rank is not known.
        """
        return self._known(self.node.outputs[index])

    def _known(self, found: ir.Value | Port) -> Side:
        known = side(self.space, found)
        if known is None:
            value = found.value if isinstance(found, Port) else found
            raise RefusedError(f"the rank of '{value.name}' is not known")
        return known

    @property
    def inputs(self) -> list[Side]:
        """All inputs that are present."""
        return [self.input(i) for i in range(len(self.node.inputs)) if self.has(i)]

    @property
    def outputs(self) -> list[Side]:
        """All outputs that have a name."""
        return [self.output(i) for i, value in enumerate(self.node.outputs) if value.name]

    def is_constant(self, index: int) -> bool:
        """Whether an input is a constant."""
        return isinstance(owner(self.node, index), Port)

    def is_fixed(self, index: int) -> bool:
        """Whether an input is a constant, or computed from constants only."""
        return self.has(index) and self.space.is_fixed(self.node.inputs[index])

    def constant(self, index: int) -> np.ndarray[Any, Any] | None:
        """A constant input, or ``None``."""
        return g.array(self.node.inputs[index]) if self.has(index) else None

    def same(self, x: Side, a: int, y: Side, b: int) -> None:
        """Axis ``a`` of x and axis ``b`` of y are one; where their dims are not provably equal, both stay."""
        if x.dims[a] == y.dims[b]:
            self.unite(x.ids(a), y.ids(b))
        else:
            self.freeze(x, "the dims that it joins are not provably equal", [a])
            self.freeze(y, "the dims that it joins are not provably equal", [b])

    def same_axes(self, x: Side, y: Side, axes: Iterable[int] | None = None) -> None:
        """The axes of two values of one rank are the same, or only some of them."""
        for axis in range(min(x.rank, y.rank)) if axes is None else axes:
            self.same(x, axis, y, axis)

    def unite(self, a: Ids, b: Ids) -> None:
        """Element ``a[i]`` goes with ``b[i]``."""
        self.space.elements.unite(a, b)

    def freeze(self, side: Side, reason: str, axes: Sequence[int] | None = None) -> None:
        """Axes of an input or output cannot be cut; all of them by default."""
        freeze(side, f"{g.label(self.node)}: {reason}", axes)

    def freeze_elements(self, ids: Ids, reason: str) -> None:
        """Some elements cannot be cut."""
        self.space.elements.freeze(ids, f"{g.label(self.node)}: {reason}")

    def freeze_all(self, reason: str) -> None:
        """Nothing that the node touches can be cut; its weights, if any, count as a layer's."""
        owners = [owner(self.node, i) for i in range(len(self.node.inputs))]
        for found in owners:
            if isinstance(found, Port) and (g.rank(found.value) or 0) > 1:
                self.space.producers.append(Link(found, 0))
        for found in (*owners, *self.node.outputs):
            freeze(None if found is None else side(self.space, found), f"{g.label(self.node)}: {reason}")

    def produce(self, index: int, axis: int) -> None:
        """The node makes channels: one for each element of this axis of an operand."""
        self.space.producers.append(self._link(index, axis))

    def consume(self, index: int, axis: int) -> None:
        """The node sums over this axis of an operand, so that zeros there take channels out of the sum."""
        self.space.consumers.append(self._link(index, axis))

    def _link(self, index: int, axis: int) -> Link:
        return Link(Port(self.node, index), axis % self.input(index).rank)

    def favour(self, side: Side, axis: int) -> None:
        """Where there is a choice, this axis comes first."""
        self.space.elements.favour(side.ids(axis))

    def choose(self, *options: Option) -> None:
        """Leave a choice until all rules have spoken."""
        self.space.choices.append(list(options))


Rule = Callable[[Site], None]
RULES: dict[str, Rule] = {}
"""Operator type → what it does to axes."""


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Enter the rule of some operators of the default domain."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(op_types, function))
        return function

    return enter
