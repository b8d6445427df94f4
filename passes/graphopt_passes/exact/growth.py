"""How many bytes a file gains when computed values are stored in place of the nodes that compute them."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt import graph as g
from graphopt.footprint import constant_bytes, node_bytes
from graphopt_passes.exact.constant_cone import frontier, is_stored

# Smaller constants do not tie values to one decision: hundreds of nodes share a 0 or a 1.
_SMALL = 64


@dataclass
class Plan:
    """Which nodes to fold.

    Attributes:
        groups: sets of nodes that fold together, each in the order of the model.
        refused: a node that does not fold, and by how many bytes it would make the file grow.
        growth: bytes that the folded groups add to the file, less than 0 when it shrinks.
    """

    groups: list[list[ir.Node]] = field(default_factory=list)
    refused: dict[ir.Node, int] = field(default_factory=dict)
    growth: int = 0

    @property
    def nodes(self) -> list[ir.Node]:
        """All nodes to fold, group by group."""
        return [node for group in self.groups for node in group]


def affordable(nodes: list[ir.Node], sizes: Mapping[ir.Value, int], budget: int) -> Plan:
    """Choose what to fold so that the file grows by ``budget`` bytes at most, savings first.

    A group that costs too much gives up its largest value; what fed that value is judged anew.

    Args:
        nodes: nodes that depend on constants only, in the order of the model.
        sizes: bytes of the values that they make, once stored.
        budget: bytes that may be added, all groups together.
    """
    plan = Plan()
    place = {node: index for index, node in enumerate(nodes)}
    queue = [_ranked(group, sizes, place) for group in _groups(nodes)]
    heapq.heapify(queue)
    while queue:
        growth, _, group = heapq.heappop(queue)
        if plan.growth + growth <= budget:
            plan.groups.append(group)
            plan.growth += growth
            continue
        largest = max(frontier(group), key=sizes.__getitem__).producer()
        assert largest is not None
        plan.refused[largest] = growth
        for part in _groups([node for node in group if node is not largest]):
            heapq.heappush(queue, _ranked(part, sizes, place))
    return plan


def _ranked(
    group: list[ir.Node], sizes: Mapping[ir.Value, int], place: Mapping[ir.Node, int]
) -> tuple[int, int, list[ir.Node]]:
    return _growth(group, sizes), place[group[0]], group


def _growth(group: list[ir.Node], sizes: Mapping[ir.Value, int]) -> int:
    inside = _with_subgraphs(group)
    added = sum(sizes[value] for value in frontier(group))
    freed = {value for node in group for value in g.reads(node) if _is_freed(value, inside)}
    return added - sum(map(node_bytes, group)) - sum(map(constant_bytes, freed))


def _with_subgraphs(group: list[ir.Node]) -> set[ir.Node]:
    held = (inner for node in group for graph in g.subgraphs(node) for inner in graph.all_nodes())
    return {*group, *held}


def _is_freed(value: ir.Value, inside: set[ir.Node]) -> bool:
    if not is_stored(value) or value.is_graph_output():
        return False
    return all(use.node in inside for use in value.uses())


def _groups(nodes: list[ir.Node]) -> list[list[ir.Node]]:
    """Nodes that share a value or a constant of more than a few bytes are decided on together."""
    parent = {node: node for node in nodes}

    def root(node: ir.Node) -> ir.Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    users: dict[ir.Value, ir.Node] = {}
    for node in nodes:
        for value in g.reads(node):
            producer = value.producer()
            if producer in parent:
                parent[root(node)] = root(producer)
            elif is_stored(value) and constant_bytes(value) > _SMALL:
                parent[root(node)] = root(users.setdefault(value, node))
    groups: dict[ir.Node, list[ir.Node]] = defaultdict(list)
    for node in nodes:
        groups[root(node)].append(node)
    return list(groups.values())
