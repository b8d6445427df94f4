"""Whether graphopt prunes better than the best method of the peer, task by task and cut by cut.

It loses less of the metric or has a higher SQNR and, where channels go, is faster at every workload. Compared
are peers that cut as deep, since what leaves a model nearly as it was loses nothing; where there is none,
those that cut less, which proves something only if graphopt is better all the same. Depth is the share of
weights that are zero, and where channels go that of multiply-accumulates that are gone.
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
    entry, equals = entries[ours(cut)], as_deep(cut, entries)
    rivals = equals or cutting(cut, entries)
    best_drop = min((drop(one, entries) for one in rivals), default=math.inf)
    best_sqnr = max((decibels(one) for one in rivals), default=-math.inf)
    fastest = max((min(speeds(one)) for one in rivals), default=0.0)
    closer = drop(entry, entries) < best_drop or decibels(entry) > best_sqnr
    faster = not CUTS[cut].promises_speed or outruns(entry, rivals)
    deepest = max((depth(cut, one, entries) for one in rivals), default=0.0)
    return [
        task,
        cut,
        pair(100 * depth(cut, entry, entries), 100 * deepest, ".0f", rivals),
        pair(drop(entry, entries), best_drop, ".2f", rivals),
        pair(decibels(entry), best_sqnr, ".1f", rivals),
        pair(min(speeds(entry)), fastest, ".2f", rivals),
        reason(cut, entries) or word(closer and faster, deepest - depth(cut, entry, entries), equals),
    ]


def as_deep(cut: str, entries: dict[str, Facts]) -> list[Facts]:
    """The peers' results that cut as deep as graphopt's."""
    least = depth(cut, entries[ours(cut)], entries) - SHALLOWER
    return [one for one in cutting(cut, entries) if depth(cut, one, entries) >= least]


def cutting(cut: str, entries: dict[str, Facts]) -> list[Facts]:
    """The peers' results that lack anything worth mentioning."""
    found = [entries[name] for name in running(cut, entries)]
    return [one for one in found if depth(cut, one, entries) > SHALLOWER]


def running(cut: str, entries: dict[str, Facts]) -> list[str]:
    """The peers that took part with a model that runs."""
    return [name for name in peers(cut) if runs(entries.get(name, {}))]


def depth(cut: str, entry: Facts, entries: dict[str, Facts]) -> float:
    """Share of the original that is gone: of multiply-accumulates where channels go, else of weights."""
    before = entries[ORIGINAL]
    if CUTS[cut].promises_speed:
        return 1 - entry["macs"] / before["macs"] if entry["macs"] and before["macs"] else 0.0
    return float(1 - (entry["weights"] - entry["zeros"]) / before["weights"])


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


def reason(cut: str, entries: dict[str, Facts]) -> str:
    """Why there is nothing to compare with; empty if there is."""
    if not running(cut, entries):
        return "no peer took part"
    return "" if cutting(cut, entries) else "the peer cuts nothing"


def word(better: bool, deeper: float, equals: list[Facts]) -> str:
    """Yes or no; or how the cuts differ."""
    if deeper > SHALLOWER:
        return "cuts less"
    return "yes" if better else "no" if equals else "no peer cuts as deep"


def best(cut: str, entries: dict[str, Facts]) -> str | None:
    """The peer's method with the highest metric, then the highest SQNR; None if none runs."""
    return max(
        running(cut, entries),
        key=lambda name: (entries[name]["metric"], decibels(entries[name])),
        default=None,
    )


def shown(entries: dict[str, Facts]) -> list[str]:
    """The contestants of a table in order: fp32, then for each cut graphopt and the best peer."""
    names = [ORIGINAL]
    for cut in dict.fromkeys(map(cut_of, entries)):
        names += [name for name in (ours(cut), best(cut, entries)) if name in entries]
    return names
