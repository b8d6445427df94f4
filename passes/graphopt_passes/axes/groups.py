"""Groups of channels: what must be removed together, who makes and who reads it, and what must stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt_passes.axes.elements import Ids
from graphopt_passes.axes.space import Owner, Port


@dataclass(frozen=True)
class Member:
    """An axis that has elements of a group.

    Attributes:
        value: a value, or the constant that a node reads.
        axis: which of its axes.
        units: for each element of the axis the number of its unit, -1 for elements of other groups.
        port: the input that reads the constant, or the operand that is a producer or consumer; else ``None``.
    """

    value: ir.Value
    axis: int
    units: NDArray[np.int64]
    port: Port | None = None

    @property
    def is_constant(self) -> bool:
        """Whether it is a weight that is cut."""
        return g.constant(self.value) is not None

    @property
    def owner(self) -> Owner:
        """Who has the axis."""
        return self.port if self.port is not None and self.is_constant else self.value


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that may be removed one unit at a time.

    All units lie in the same axes. A unit may have several elements of an axis: the pixels of a channel
    behind Flatten, the channels of a head, one channel of each block of a grouped Conv.

    Attributes:
        name: of the value that the first producer makes.
        width: the number of units, at least 2; one at least must stay.
        members: all axes that have its elements.
        producers: operands that make its channels, such as the weights of a Conv along axis 0.
        consumers: operands that it is summed over with; zeros in them take channels out of the model.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    producers: tuple[Member, ...]
    consumers: tuple[Member, ...]

    def chosen(self, units: Iterable[int] | Ids) -> NDArray[np.bool_]:
        """Whether each unit stays, [width + 1]; the last stands for elements of other groups, which do.

        Raises:
            ValueError: no unit stays, or there is none of such a number.
        """
        stay = np.zeros(self.width + 1, np.bool_)
        numbers = np.asarray(list(units), np.int64)
        if not len(numbers) or numbers.min() < 0 or numbers.max() >= self.width:
            raise ValueError(f"'{self.name}' has units 0 … {self.width - 1}, of which one at least must stay")
        stay[numbers] = stay[-1] = True
        return stay


@dataclass(frozen=True)
class Frozen:
    """Channels that cannot be removed.

    Attributes:
        value: that has them along an axis: an output of the layer that makes them.
        axis: the axis of the layer's weight.
        reason: why not.
        width: how many there are.
    """

    value: ir.Value
    axis: int
    reason: str
    width: int


@dataclass(frozen=True)
class Analysis:
    """Everything that layers make: what may be cut, and what may not.

    Attributes:
        groups: in the order of the graph.
        frozen: the rest, with reasons.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
