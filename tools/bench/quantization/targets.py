"""Whether graphopt reaches what the comparison asks of it, task by task.

Accuracy: the metric drops at most half as much as the best peer's, or stays within 0.1 of fp32; agreement
and SQNR are above the best peer's with as large a share of integer multiply-accumulates. Latency: never
slower than fp32, and how much faster than the fastest contestant of equal or better accuracy, fp32 included.
"""

from __future__ import annotations

import math
from typing import Any

from tools.bench.quantization.contestants import GRAPHOPT, PEERS
from tools.bench.roster import ORIGINAL
from tools.bench.tables import markdown

Facts = dict[str, Any]
NEAR = 0.1  # of the metric's unit
SAME_SHARE = 1.0  # percent of integer multiply-accumulates
HEAD = ["task", "metric", "agreement and SQNR", "never slower", "faster than the best peer by", "which"]


def table(comparisons: dict[str, Facts]) -> str:
    """One line per task that graphopt finished, and the geometric mean of the gains."""
    entries = {task: facts["contestants"] for task, facts in comparisons.items()}
    done = {task: found for task, found in entries.items() if "speed" in found.get(GRAPHOPT, {})}
    lines = [row(task, found) for task, found in done.items()]
    gains = [value for found in done.values() for value, _ in rivals(found).values()]
    mean = (
        f"Geometric mean over tasks and batches: {geometric_mean(gains):.2f}×."
        if gains
        else "Nothing to tell."
    )
    return markdown(HEAD, "||||>|", lines) + f"\n\n{mean}"


def row(task: str, entries: dict[str, Facts]) -> list[str]:
    """Cells of one task."""
    best = rivals(entries)
    return [
        task,
        metric(entries),
        fidelity(entries),
        word(not any(speed["verdict"] == "slower" for speed in entries[GRAPHOPT]["speed"].values())),
        " / ".join(f"{gain:.2f}×" for gain, _ in best.values()),
        " / ".join(name for _, name in best.values()),
    ]


def metric(entries: dict[str, Facts]) -> str:
    """Whether the metric drops little enough, with the drops."""
    if "metric" not in entries[ORIGINAL]:
        return "–"
    drops = {name: drop(entries, name) for name in (GRAPHOPT, *peers(entries))}
    ours, theirs = drops.pop(GRAPHOPT), min(drops.values(), default=math.inf)
    return f"{word(ours <= max(NEAR, theirs / 2))} (−{ours:.2f}, best peer −{theirs:.2f})"


def drop(entries: dict[str, Facts], name: str) -> float:
    """How far the metric of a contestant is below fp32's."""
    return float(entries[ORIGINAL]["metric"]) - float(entries[name]["metric"])


def peers(entries: dict[str, Facts]) -> list[str]:
    """The peers whose result runs."""
    return [name for name in PEERS if "speed" in entries.get(name, {})]


def fidelity(entries: dict[str, Facts]) -> str:
    """Whether agreement and SQNR are above those of all peers that compute as much in integers."""
    ours = entries[GRAPHOPT]
    share = ours["integer_macs"] - SAME_SHARE
    alike = [entries[name] for name in peers(entries) if entries[name]["integer_macs"] >= share]
    agreement = max((peer["agreement"] for peer in alike), default=-math.inf)
    sqnr = max((decibels(peer) for peer in alike), default=-math.inf)
    return f"{word(ours['agreement'] >= agreement)}, {word(decibels(ours) >= sqnr)}"


def decibels(entry: Facts) -> float:
    """SQNR, or minus infinity where it has none."""
    value = entry.get("sqnr")
    return -math.inf if value is None else float(value)


def rivals(entries: dict[str, Facts]) -> dict[str, tuple[float, str]]:
    """By workload: graphopt's speed over that of the fastest contestant as accurate, and its name."""
    equal = [name for name in peers(entries) if accuracy(entries[name]) >= accuracy(entries[GRAPHOPT])]
    found = {}
    for load, ours in entries[GRAPHOPT]["speed"].items():
        speeds = {ORIGINAL: 1.0, **{name: entries[name]["speed"][load]["ratio"] for name in equal}}
        fastest = max(speeds, key=lambda name: speeds[name])
        found[load] = (ours["ratio"] / speeds[fastest], fastest)
    return found


def accuracy(entry: Facts) -> float:
    """What contestants are ranked by: the metric, or agreement where the right answers are not known."""
    return float(entry.get("metric", entry["agreement"]))


def geometric_mean(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def word(reached: bool) -> str:
    """Yes or no."""
    return "yes" if reached else "no"
