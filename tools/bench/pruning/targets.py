"""Whether graphopt prunes better than the best method of the peer, task by task and cut by cut.

It loses less of the metric or has a higher SQNR and, where channels go, is faster at every workload. Compared
are only peers that cut as deep: what leaves a model nearly as it was loses nothing. Depth is the share of
weights that are gone or zero, or of multiply-accumulates where channels go.
"""

from __future__ import annotations

import math
from typing import Any

from tools.bench.pruning.contestants import CUTS, cut_of, ours, peers
from tools.bench.roster import ORIGINAL
from tools.bench.tables import markdown

Facts = dict[str, Any]
SHALLOWER = 0.05  # of the depth, which does not count as a difference
HEAD = ["task", "cut", "depth %", "drop", "SQNR dB", "speed", "better"]


def table(comparisons: dict[str, Facts]) -> str:
    """One line per task and cut that graphopt finished and the peer knows; empty if there is none."""
    lines = [
        line(task, cut, facts["contestants"])
        for task, facts in comparisons.items()
        for cut in CUTS
        if peers(cut) and runs(facts["contestants"].get(ours(cut), {}))
    ]
    return markdown(HEAD, "||>>>>|", lines) if lines else ""


def runs(entry: Facts) -> bool:
    """Whether a contestant took part with a model that runs."""
    return "speed" in entry


def line(task: str, cut: str, entries: dict[str, Facts]) -> list[str]:
    """Cells of one cut: graphopt's number, then the best of the peers' of the same depth."""
    entry, rivals = entries[ours(cut)], as_deep(cut, entries)
    best_drop = min((drop(one, entries) for one in rivals), default=math.inf)
    best_sqnr = max((decibels(one) for one in rivals), default=-math.inf)
    fastest = max((min(speeds(one)) for one in rivals), default=0.0)
    closer = drop(entry, entries) < best_drop or decibels(entry) > best_sqnr
    faster = not CUTS[cut].promises_speed or outruns(entry, rivals)
    deepest = max((depth(one, entries) for one in rivals), default=0.0)
    return [
        task,
        cut,
        pair(100 * depth(entry, entries), 100 * deepest, ".0f", rivals),
        pair(drop(entry, entries), best_drop, ".2f", rivals),
        pair(decibels(entry), best_sqnr, ".1f", rivals),
        pair(min(speeds(entry)), fastest, ".2f", rivals),
        word(closer and faster, entry, rivals, entries),
    ]


def as_deep(cut: str, entries: dict[str, Facts]) -> list[Facts]:
    """The peers' results that cut as deep as graphopt's."""
    least = depth(entries[ours(cut)], entries) - SHALLOWER
    found = [entries[name] for name in peers(cut) if runs(entries.get(name, {}))]
    return [one for one in found if depth(one, entries) >= least]


def depth(entry: Facts, entries: dict[str, Facts]) -> float:
    """Share of what was there that is gone: of multiply-accumulates if any are, else of weights."""
    before = entries[ORIGINAL]
    arithmetic = 1 - entry["macs"] / before["macs"] if entry["macs"] and before["macs"] else 0.0
    return max(arithmetic, 1 - (entry["weights"] - entry["zeros"]) / before["weights"])


def drop(entry: Facts, entries: dict[str, Facts]) -> float:
    """How far the metric is below the original's."""
    return float(entries[ORIGINAL]["metric"]) - float(entry["metric"])


def decibels(entry: Facts) -> float:
    """SQNR, or minus infinity where it has none."""
    value = entry.get("sqnr")
    return -math.inf if value is None else float(value)


def speeds(entry: Facts) -> list[float]:
    """Times the original's speed, by workload."""
    return [float(load["ratio"]) for load in entry["speed"].values()]


def outruns(entry: Facts, rivals: list[Facts]) -> bool:
    """Whether a result is faster than all rivals, at every workload."""
    return all(
        mine > theirs for one in rivals for mine, theirs in zip(speeds(entry), speeds(one), strict=True)
    )


def pair(mine: float, theirs: float, form: str, rivals: list[Facts]) -> str:
    """graphopt's number, and the best of its rivals' if there are any."""
    return f"{mine:{form}} ({theirs:{form}})" if rivals else f"{mine:{form}}"


def word(better: bool, entry: Facts, rivals: list[Facts], entries: dict[str, Facts]) -> str:
    """Yes or no; no peer may cut as deep, or one much deeper."""
    if not rivals:
        return "no peer cuts as deep"
    if max(depth(one, entries) for one in rivals) > depth(entry, entries) + SHALLOWER:
        return "cuts less"
    return "yes" if better else "no"


def best(cut: str, entries: dict[str, Facts]) -> str | None:
    """The peer's method with the highest metric, then the highest SQNR; None if none runs."""
    found = [name for name in peers(cut) if runs(entries.get(name, {}))]
    return max(found, key=lambda name: (entries[name]["metric"], decibels(entries[name])), default=None)


def shown(entries: dict[str, Facts]) -> list[str]:
    """The contestants of a table in order: fp32, then for each cut graphopt and the best peer."""
    names = [ORIGINAL]
    for cut in dict.fromkeys(map(cut_of, entries)):
        names += [name for name in (ours(cut), best(cut, entries)) if name in entries]
    return names
