"""Which nodes compute on integers: the labelling of least cost, by a minimum cut.

Let x_i be 1 if node i computes on integers. With f_i and n_i the seconds of node i on floats and on integers,
p_i the accuracy that its integers cost, and λ the seconds that a unit of accuracy is worth, the cost is

    E(x) = Σ_i [f_i (1 − x_i) + (n_i + λ p_i) x_i]
         + Σ_v [q_v (1 − x_a) max_{c ∈ v} x_c + d_v x_a max_{c ∈ v} (1 − x_c)]

over the values v, made by node a and read by nodes c: whoever reads integers of a float value makes it pay
q_v once, and whoever reads floats of an integer value makes it pay d_v once. Each max of a term becomes a
vertex of its own, after which all terms are of pairs and submodular; so the labelling of least cost is a
minimum s-t cut (Greig, Porteous & Seheult 1989; Boykov & Kolmogorov 2004; such vertices: Kohli, Ladický &
Torr 2009).

λ is a Lagrange multiplier: the labellings that are best for some λ are the lower convex hull of all pairs of
latency and accuracy lost. As λ grows, nodes only turn to floats (Gallo, Grigoriadis & Tarjan 1989), so there
are no more of them than nodes, and each is found by two cuts (Eisner & Severance 1976).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# maximum_flow computes on int32: all finite costs together are this many ticks, and no cut has an edge of
# more. The sum of both must fit, since flow against an edge adds to what it can carry.
_TICKS = 2**29
_NEVER = 2**30
_INFINITE = float("inf")
# Labellings whose costs differ by less, relatively, are equally good.
_SAME = 1e-9
_SOURCE, _SINK = 0, 1  # the source's side computes on integers


@dataclass(frozen=True)
class Choice:
    """One node's costs.

    Attributes:
        on_floats: seconds.
        on_integers: seconds; None if it has no such kernel, or must stay as it is.
        penalty: accuracy lost if it computes on integers, not negative, in any unit; penalties add up.
    """

    on_floats: float
    on_integers: float | None
    penalty: float = 0.0


@dataclass(frozen=True)
class Crossing:
    """What a value costs where floats meet integers.

    Attributes:
        producer: the node that makes it; None for a graph input, or a node that is no matter of choice:
            it is float.
        consumers: the nodes that read it.
        quantize: seconds, paid once if it is made as floats and a consumer reads integers.
        dequantize: seconds, paid once if it is made as integers and read as floats.
        read_as_float: somebody else reads it as floats: a graph output, a node that is no matter of choice.
        made_as_float: its producer gives floats even if it computes on integers (MatMulIntegerToFloat).
    """

    producer: str | None
    consumers: Collection[str]
    quantize: float
    dequantize: float
    read_as_float: bool = False
    made_as_float: bool = False

    def cost(self, integers: Collection[str]) -> float:
        """Seconds under a labelling."""
        made_as_integers = self.producer in integers and not self.made_as_float
        if not made_as_integers:
            return self.quantize if any(name in integers for name in self.consumers) else 0.0
        floats = self.read_as_float or any(name not in integers for name in self.consumers)
        return self.dequantize if floats else 0.0


@dataclass(frozen=True)
class Costs:
    """A whole model's.

    Attributes:
        nodes: by name; those that are missing are float and cost the same in any labelling.
        values: the crossings between them.
        together: groups of nodes that must agree.
    """

    nodes: Mapping[str, Choice]
    values: Sequence[Crossing]
    together: Sequence[Collection[str]] = ()

    def seconds(self, integers: Collection[str]) -> float:
        """The latency of a labelling: Σ of what its nodes and its crossings take; infinite if not allowed."""
        total = sum(value.cost(integers) for value in self.values)
        for name, choice in self.nodes.items():
            on_integers = float("inf") if choice.on_integers is None else choice.on_integers
            total += on_integers if name in integers else choice.on_floats
        divided = any(0 < sum(name in integers for name in group) < len(group) for group in self.together)
        return float("inf") if divided else total

    def penalty(self, integers: Collection[str]) -> float:
        """The accuracy that a labelling loses."""
        return sum(self.nodes[name].penalty for name in integers)


@dataclass(frozen=True)
class Labelling:
    """The nodes that compute on integers, the seconds that the model takes, and the accuracy it loses."""

    integers: frozenset[str]
    seconds: float
    penalty: float


def cheapest(costs: Costs, multiplier: float = 0.0) -> Labelling:
    """The labelling of least seconds + multiplier · penalty; of several, the one with the fewest integers.

    Costs are rounded to 2⁻²⁹ of their sum.

    Raises:
        ValueError: a cost is negative or not a number, or a name is unknown.
    """
    graph = _Graph(costs, multiplier)
    integers = frozenset(graph.least_source_side())
    return Labelling(integers, costs.seconds(integers), costs.penalty(integers))


def sweep(costs: Costs) -> tuple[Labelling, ...]:
    """The frontier of latency against accuracy, fastest first, the most accurate last.

    It holds each labelling that is the cheapest for some multiplier.
    """
    fastest = cheapest(costs)
    safest = cheapest(_harmless(costs))
    found = {label.integers: label for label in (fastest, *_between(costs, fastest, safest), safest)}
    return tuple(sorted(found.values(), key=lambda label: (label.seconds, -label.penalty)))


def _between(costs: Costs, fast: Labelling, safe: Labelling) -> Iterator[Labelling]:
    """The hull between two of its corners: the labelling that is best where both are equally good, if any."""
    if safe.penalty >= fast.penalty or safe.seconds <= fast.seconds:
        return
    multiplier = (safe.seconds - fast.seconds) / (fast.penalty - safe.penalty)
    middle = cheapest(costs, multiplier)
    tie = safe.seconds + multiplier * safe.penalty
    if middle.seconds + multiplier * middle.penalty < tie * (1 - _SAME):
        yield from _between(costs, fast, middle)
        yield middle
        yield from _between(costs, middle, safe)


def _harmless(costs: Costs) -> Costs:
    """The costs where whatever loses accuracy must stay float."""
    nodes = {
        name: Choice(choice.on_floats, None if choice.penalty else choice.on_integers)
        for name, choice in costs.nodes.items()
    }
    return Costs(nodes, costs.values, costs.together)


class _Graph:
    """The vertices and capacities of the cut."""

    def __init__(self, costs: Costs, multiplier: float) -> None:
        self._vertices = {name: index for index, name in enumerate(costs.nodes, start=2)}
        self._count = 2 + len(self._vertices)
        self._edges: dict[tuple[int, int], float] = {}
        for name, choice in costs.nodes.items():
            self._choice(self._vertices[name], choice, multiplier)
        for value in costs.values:
            self._crossing(value)
        for group in costs.together:
            self._agreement([self._vertex(name) for name in group])

    def _choice(self, vertex: int, choice: Choice, multiplier: float) -> None:
        self._edge(_SOURCE, vertex, choice.on_floats)
        on_integers = _INFINITE if choice.on_integers is None else choice.on_integers
        self._edge(vertex, _SINK, on_integers + multiplier * choice.penalty)

    def _crossing(self, value: Crossing) -> None:
        producer = _SINK if value.producer is None or value.made_as_float else self._vertex(value.producer)
        consumers = [self._vertex(name) for name in value.consumers]
        some_integer = self._auxiliary()  # on the source's side if a consumer is
        self._edge(some_integer, producer, value.quantize)
        for consumer in consumers:
            self._edge(consumer, some_integer, _INFINITE)
        all_integers = self._auxiliary()  # on the source's side only if all consumers are
        self._edge(producer, all_integers, value.dequantize)
        for consumer in [*consumers, *([_SINK] if value.read_as_float else [])]:
            self._edge(all_integers, consumer, _INFINITE)

    def _agreement(self, group: Sequence[int]) -> None:
        for one, other in pairwise(group):
            self._edge(one, other, _INFINITE)
            self._edge(other, one, _INFINITE)

    def _vertex(self, name: str) -> int:
        if name not in self._vertices:
            raise ValueError(f"no costs are given for node '{name}'")
        return self._vertices[name]

    def _auxiliary(self) -> int:
        self._count += 1
        return self._count - 1

    def _edge(self, start: int, end: int, cost: float) -> None:
        if not cost >= 0:
            raise ValueError(f"a cost must not be negative: {cost}")
        if start not in (end, _SINK):
            self._edges[start, end] = self._edges.get((start, end), 0.0) + cost

    def least_source_side(self) -> list[str]:
        """The nodes that residual capacity still reaches from the source after a maximum flow."""
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import breadth_first_order, maximum_flow

        ends = np.array(list(self._edges), dtype=np.int32).reshape(-1, 2).T
        capacities = csr_array((self._ticks(), (ends[0], ends[1])), shape=(self._count, self._count))
        flow = maximum_flow(capacities, _SOURCE, _SINK).flow
        residual = (capacities.astype(np.int64) - flow.astype(np.int64)).tocsr()
        residual.eliminate_zeros()
        reached = set(breadth_first_order(residual, _SOURCE, return_predecessors=False).tolist())
        return [name for name, vertex in self._vertices.items() if vertex in reached]

    def _ticks(self) -> NDArray[Any]:
        """Capacities as integers of one unit; infinite ones exceed the sum of all others."""
        costs = np.array(list(self._edges.values()))
        finite = np.isfinite(costs)
        unit = costs[finite].sum() / _TICKS or 1.0
        ticks = np.full(len(costs), _NEVER, np.int64)
        ticks[finite] = np.rint(costs[finite] / unit)
        return ticks.astype(np.int32)
