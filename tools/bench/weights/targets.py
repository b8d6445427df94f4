"""Whether graphopt reaches what the comparison asks of it.

With samples, what is lost is at most two thirds of what the best peer of the same bits loses: perplexity on
held-out text, and 100 minus the cosine to fp32's embeddings. At batch 1 it is faster than fp32. A result that
mixes bits is not compared, nor one whose file is larger than the peer's, such as the float model.
"""

from __future__ import annotations

import math
from typing import Any

from tools.bench.roster import ORIGINAL
from tools.bench.weights.contestants import MIXED, OURS, PEERS, bits

Facts = dict[str, Any]
SHARE = 2 / 3


def text(comparisons: dict[str, Facts]) -> str:
    """One line per task and contestant of ours that ran; empty if there is none."""
    return "\n".join(
        line(task, name, facts)
        for task, facts in comparisons.items()
        for name in OURS
        if name not in MIXED and runs(name, facts)
    )


def runs(name: str, facts: Facts) -> bool:
    """Whether a contestant took part with a model that runs."""
    return "speed" in facts["contestants"].get(name, {})


def line(task: str, name: str, facts: Facts) -> str:
    """What one of ours loses beside the best peer of the same bits, and how fast it is."""
    ours = loss(name, facts)
    best, peer = min(((loss(one, facts), one) for one in rivals(name, facts)), default=(math.inf, "none"))
    entries = facts["contestants"]
    is_larger = peer in entries and entries[name]["bytes"] > entries[peer]["bytes"]
    reached = "not compared, the file is larger" if is_larger else word(ours <= SHARE * best)
    speeds = "; ".join(
        f"{speed['ratio']:.2f}× at {load} ({speed['verdict']})"
        for load, speed in facts["contestants"][name]["speed"].items()
    )
    return (
        f"- {task}, {name}: loses {ours:.4f} at {size(name, facts)}, the best peer ({peer}) {best:.4f}"
        f" at {size(peer, facts)}: {reached}; {speeds}"
    )


def size(name: str, facts: Facts) -> str:
    """Size of a contestant's file."""
    return f"{facts['contestants'].get(name, {}).get('bytes', 0) / 1e6:.2f} MB"


def rivals(name: str, facts: Facts) -> list[str]:
    """The peers of the same bits whose result runs."""
    return [one for one in PEERS if bits(one) == bits(name) and runs(one, facts)]


def loss(name: str, facts: Facts) -> float:
    """How far the metric is above fp32's if low ones are good, else what an agreement lacks of 100."""
    entry, original = facts["contestants"][name], facts["contestants"][ORIGINAL]
    if facts["lower_is_better"]:
        return float(entry["metric"] - original["metric"])
    return 100 - float(entry["agreement"])


def word(reached: bool) -> str:
    """Whether a target is reached."""
    return "reached" if reached else "missed"
