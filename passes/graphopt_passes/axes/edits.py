"""What cuts leave of each axis, and how nodes whose attributes or small operands state sizes follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt_passes.axes.space import Owner, Port, owner

if TYPE_CHECKING:
    from graphopt.shapes.inference import Shapes
    from graphopt.shapes.symbols import Dim
    from graphopt_passes.axes.constants import Constants
    from graphopt_passes.axes.groups import Group

Kept = NDArray[np.int64]


class Cuts:
    """Which elements of each axis stay when only some units of some groups do."""

    def __init__(self, kept: Mapping[Group, Kept]) -> None:
        """Combine the cuts of all groups; an axis may have elements of several.

        Args:
            kept: numbers of the units that stay, by group.

        Raises:
            ValueError: a group would have no units left, or units that it does not have.
        """
        stay: dict[tuple[Owner, int], NDArray[np.bool_]] = {}
        for group, units in kept.items():
            chosen = group.chosen(units)
            for member in group.members:
                mask = stay.setdefault((member.owner, member.axis), np.ones(len(member.units), np.bool_))
                mask &= chosen[member.units]
        self._stay = {key: mask for key, mask in stay.items() if not mask.all()}

    def kept(self, owner: Owner | None, axis: int) -> Kept | None:
        """The elements that stay, ascending; ``None`` if the axis is not cut."""
        mask = None if owner is None else self._stay.get((owner, axis))
        return None if mask is None else np.flatnonzero(mask)

    def size(self, owner: Owner, axis: int) -> int:
        """How many elements an axis that is cut had."""
        return len(self._stay[owner, axis])

    def owners(self) -> dict[Owner, dict[int, Kept]]:
        """What has cut axes, and what stays of each."""
        found: dict[Owner, dict[int, Kept]] = {}
        for (who, axis), mask in self._stay.items():
            found.setdefault(who, {})[axis] = np.flatnonzero(mask)
        return found


@dataclass(frozen=True)
class Edit:
    """A node that follows the cuts around it.

    Attributes:
        before: the node in the model that was analyzed.
        node: the same node in the copy that is cut.
        cuts: what stays of each axis.
        constants: makes new ones.
        shapes: what is proved of the model that was analyzed.
        opset: of the graph that the node is in.
    """

    before: ir.Node
    node: ir.Node
    cuts: Cuts
    constants: Constants
    shapes: Callable[[], Shapes]
    opset: int

    def kept(self, index: int, axis: int) -> Kept | None:
        """What stays of an axis of an input; ``None`` if it is not cut."""
        return self.cuts.kept(owner(self.before, index), axis)

    def size(self, index: int, axis: int) -> int:
        """How long an axis of an input that is cut was."""
        who = owner(self.before, index)
        assert who is not None
        return self.cuts.size(who, axis)

    def made(self, axis: int, index: int = 0) -> Kept | None:
        """What stays of an axis of an output; ``None`` if it is not cut."""
        return self.cuts.kept(self.before.outputs[index], axis)

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...]:
        """The dims that a value of the model that was analyzed has."""
        dims = self.shapes().dims(value)
        assert dims is not None, "an axis was cut"
        return dims

    def rank(self, index: int = 0) -> int:
        """The rank of an output."""
        return len(self.dims(self.before.outputs[index]))

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return g.attribute(self.node, name, default)

    def set(self, name: str, number: int | list[int]) -> None:
        """State another number or list of numbers in an attribute."""
        made = ir.AttrInt64(name, number) if isinstance(number, int) else ir.AttrInt64s(name, number)
        self.node.attributes[name] = made

    def put(self, index: int, numbers: NDArray[Any]) -> None:
        """Let the node read another constant."""
        old = self.node.inputs[index] if index < len(self.node.inputs) else None
        name = old.name if old is not None and old.name else f"{g.output_name(self.node)}_{index}"
        if index >= len(self.node.inputs):
            self.node.resize_inputs(index + 1)
        self.node.replace_input_with(index, self.constants.new(numbers, name))


Follow = Callable[[Edit], None]
EDITS: dict[str, Follow] = {}
"""Operator type → how its attributes and small operands follow cuts of its inputs and outputs."""


def follows(*op_types: str) -> Callable[[Follow], Follow]:
    """Enter how some operators of the default domain follow."""

    def enter(function: Follow) -> Follow:
        EDITS.update(dict.fromkeys(op_types, function))
        return function

    return enter


def touched(node: ir.Node, owners: Mapping[Owner, Any]) -> bool:
    """Whether an input or output of a node has cut axes."""
    ports: list[Owner] = [Port(node, i) for i in range(len(node.inputs))]
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return any(who in owners for who in (*ports, *values))
