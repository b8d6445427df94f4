"""What the nodes of a model cost once groups of channels are narrower.

A node's time, products or weights go with the channels that it makes times those that it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphopt import graph as g
from graphopt_passes.axes import Group, Member


@dataclass(frozen=True)
class Footprint:
    """Which nodes a group of channels passes through, known by their first outputs.

    Attributes:
        made: the share of a node's output channels that are the group's.
        read: the share of the channels that a node sums over that are.
    """

    made: Mapping[str, float]
    read: Mapping[str, float]

    @classmethod
    def of(cls, group: Group) -> Footprint:
        """Of a group of an analysis."""
        makers = [(one.value.producer(), one) for one in group.members if not one.is_constant]
        made = {g.output_name(node): _share(one) for node, one in makers if node is not None}
        readers = [(one.port.node, one) for one in group.consumers if one.port is not None]
        return cls(made, {g.output_name(node): _share(one) for node, one in readers})

    @property
    def nodes(self) -> set[str]:
        """All of them."""
        return {*self.made, *self.read}

    def factors(self, removed: float) -> Mapping[str, float]:
        """By node what is left of its cost, once a share of the group's units is removed."""
        found = dict.fromkeys(self.nodes, 1.0)
        for part in (self.made, self.read):
            for name, share in part.items():
                found[name] *= 1 - removed * share
        return found


def _share(member: Member) -> float:
    return float((member.units >= 0).mean())


def left(shares: Mapping[str, float], factors: Iterable[Mapping[str, float]]) -> float:
    """What is left of all cost.

    Args:
        shares: what each node takes of it.
        factors: of each group that is narrower.
    """
    found = dict(shares)
    for one in factors:
        for name, factor in one.items():
            if name in found:
                found[name] *= factor
    return sum(found.values())
