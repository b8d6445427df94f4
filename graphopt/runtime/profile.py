"""Times of single nodes, from the trace that ONNX Runtime writes when profiling is on; in the worker's child.

A trace is a list of events with a start and a duration in whole microseconds. The events of one run lie
within a ``model_run`` event; those of a subgraph's nodes within the event of the node that holds it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

MOST_RUNS = 100
_FEWEST_RUNS = 4
_SUFFIX = "_kernel_time"
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_MICROSECOND = 1e-6
# Durations are cut down to whole ticks of the clock; on average that takes half a tick away.
_HALF_TICK = 0.5

Event = Mapping[str, Any]


@dataclass(frozen=True)
class NodeTime:
    """What one executed node costs in a run.

    Attributes:
        name: the node's name in the optimized graph.
        op: its operator type.
        seconds: per run of the model, the mean of the middle half of the runs; without its subgraphs' nodes.
        calls: how often it ran per run (not 1 in subgraphs), rounded up.
        bytes: what one call read and wrote, weights included.
    """

    name: str
    op: str
    seconds: float
    calls: int
    bytes: int


def record(run: Callable[[], object], budget_s: float) -> None:
    """Run once to warm up and then until the budget is spent: between four and a hundred times."""
    run()
    end = perf_counter() + budget_s
    for turn in range(MOST_RUNS):
        if turn >= _FEWEST_RUNS and perf_counter() > end:
            return
        run()


def read_trace(path: Path) -> list[NodeTime]:
    """The nodes of a trace that starts with one run to warm up."""
    return node_times(json.loads(path.read_text()))


def node_times(events: Sequence[Event]) -> list[NodeTime]:
    """Summarize a trace; its first run, which allocates, does not count. Nodes are in the order they ran."""
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(starts))
    calls: dict[str, int] = defaultdict(int)
    last: dict[str, Event] = {}
    for event, duration in _own_durations(events):
        run = bisect_right(starts, event["ts"]) - 1
        name = event["name"].removesuffix(_SUFFIX)
        seconds[name][run] += duration * _MICROSECOND
        calls[name] += 1
        last[name] = event
    counted = len(starts)
    return [
        NodeTime(
            name,
            last[name]["args"]["op_name"],
            _middle(spent[1:]),
            -(-calls[name] // counted),
            _bytes(last[name]),
        )
        for name, spent in seconds.items()
    ]


def _own_durations(events: Sequence[Event]) -> list[tuple[Event, float]]:
    """Microseconds of each node's event in order, less those of the nodes within it."""
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith(_SUFFIX)]
    nodes.sort(key=lambda event: (event["ts"], -event["dur"]))
    own = [event["dur"] + _HALF_TICK for event in nodes]
    open_: list[int] = []
    for index, event in enumerate(nodes):
        while open_ and _end(nodes[open_[-1]]) < _end(event):
            open_.pop()
        if open_:
            own[open_[-1]] -= event["dur"]
        if event["args"]["op_name"] in _CONTROL_FLOW:
            open_.append(index)
    return [(event, max(duration, 0.0)) for event, duration in zip(nodes, own, strict=True)]


def _end(event: Event) -> float:
    return float(event["ts"] + event["dur"])


def _middle(values: Sequence[float]) -> float:
    """The mean of the middle half: as robust as the median, and finer than the clock's ticks."""
    ordered = np.sort(values)
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut]))


def _bytes(event: Event) -> int:
    return sum(int(event["args"].get(f"{kind}_size", 0)) for kind in ("activation", "parameter", "output"))
