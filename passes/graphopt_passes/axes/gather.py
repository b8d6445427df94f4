"""Sorts the units that layers make into groups: those that lie in the same axes, and those that must stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt_passes.axes.elements import Ids
from graphopt_passes.axes.groups import Analysis, Frozen, Group, Member
from graphopt_passes.axes.space import Link, Port, Space, owner


def gather(space: Space) -> Analysis:
    """The groups of a model whose rules have all spoken."""
    return _Gatherer(space).analysis()


class _Gatherer:
    """Sets of units are numbered in the order in which layers make them.

    Attributes:
        axes, producers, consumers: the units of each element of an axis.
    """

    def __init__(self, space: Space) -> None:
        self.space, find = space, space.elements.find
        self.axes = {key: find(ids) for key, ids in space.axes.items()}
        self.producers = {link: find(_ids(space, link)) for link in space.producers}
        self.consumers = {link: find(_ids(space, link)) for link in space.consumers}
        self._signatures = self._sign()
        self._set_of = np.full(space.elements.count, -1)
        self._number = np.full(space.elements.count, -1)

    def _sign(self) -> NDArray[np.uint64]:
        """For each unit the sum of random numbers of its elements' axes: equal sums are equal axes."""
        signatures = np.zeros(self.space.elements.count, np.uint64)
        words = np.random.default_rng(0).integers(2**64, size=len(self.axes), dtype=np.uint64)
        for word, units in zip(words, self.axes.values(), strict=True):
            np.add.at(signatures, units, word)  # a unit that occurs twice counts twice
        return signatures

    def analysis(self) -> Analysis:
        """Every unit that a layer makes, either in a group or frozen."""
        free: list[tuple[Link, Ids]] = []
        frozen: dict[tuple[Link, str], int] = {}
        for link, units in self._sets():
            if reason := self._reason(units):
                frozen[link, reason] = frozen.get((link, reason), 0) + len(units)
            else:
                self._set_of[units], self._number[units] = len(free), np.arange(len(units))
                free.append((link, units))
        stay = [Frozen(at.port.node.outputs[0], at.axis, why, width) for (at, why), width in frozen.items()]
        return self._complete(free, stay)

    def _sets(self) -> Iterator[tuple[Link, Ids]]:
        seen = np.zeros(self.space.elements.count, np.bool_)
        for link, units in self.producers.items():
            found: dict[tuple[int, bool], dict[int, None]] = {}
            frozen = self.space.elements.is_frozen(units)
            for unit, stays, known in zip(units.tolist(), frozen.tolist(), seen[units].tolist(), strict=True):
                if not known:
                    found.setdefault((int(self._signatures[unit]), stays), {})[unit] = None
            seen[units] = True
            yield from ((link, np.fromiter(some, np.int64)) for some in found.values())

    def _reason(self, units: Ids) -> str:
        """Why some units are no group; empty if they may be one."""
        reasons = self.space.elements.reasons(units)
        if reasons:
            return "; ".join(reasons[:3])
        return "it is a single channel, or all of its channels go together" if len(units) < 2 else ""

    def _complete(self, free: Sequence[tuple[Link, Ids]], stay: list[Frozen]) -> Analysis:
        """Find the axes of each set; one that nothing sums over must stay."""
        members: list[list[Member]] = [[] for _ in free]
        makers: list[list[Member]] = [[] for _ in free]
        readers: list[list[Member]] = [[] for _ in free]
        for (who, axis), units in self.axes.items():
            port, value = (who, who.value) if isinstance(who, Port) else (None, who)
            for number, member in self._members(units):
                members[number].append(Member(value, axis, member, port))
        for found, links in ((makers, self.producers), (readers, self.consumers)):
            for link, units in links.items():
                for number, member in self._members(units):
                    found[number].append(Member(link.port.value, link.axis, member, link.port))
        groups = []
        for number, (link, units) in enumerate(free):
            if readers[number]:
                name = g.output_name(link.port.node)
                parts = (tuple(found[number]) for found in (members, makers, readers))
                groups.append(Group(name, len(units), *parts))
            else:
                stay.append(Frozen(link.port.node.outputs[0], link.axis, "no layer sums over it", len(units)))
        return Analysis(tuple(groups), tuple(stay))

    def _members(self, units: Ids) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """The sets that an axis has elements of, and for each the numbers of its elements' units."""
        sets = self._set_of[units]
        for number in np.flatnonzero(np.bincount(sets + 1)[1:]):
            yield int(number), np.where(sets == number, self._number[units], -1)


def _ids(space: Space, link: Link) -> Ids:
    """The elements of an operand's axis; none if its dim is no number."""
    who = owner(link.port.node, link.port.index)
    assert who is not None
    return space.axes.get((who, link.axis), np.empty(0, np.int64))
