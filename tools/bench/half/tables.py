"""Markdown tables of a comparison of fp16 converters."""

from __future__ import annotations

import math
import statistics
from typing import Any

from tools.bench.half import targets
from tools.bench.half.contestants import ROSTER
from tools.bench.half.targets import flaw, known
from tools.bench.tables import markdown

Facts = dict[str, Any]
FAR_OFF_DB = 20
SUMMARY = [
    "contestant",
    "models",
    "loads",
    "checker",
    "finite",
    "valid",
    f"of these < {FAR_OFF_DB} dB",
    "SQNR dB",
    "agreement %",
    "half %",
    "casts",
    "time s",
    "memory MB",
]


def page(comparisons: dict[str, Facts]) -> str:
    """The summary, each model, and whether the targets are reached."""
    parts = [summary(comparisons), each(comparisons), targets.text(comparisons)]
    return "\n\n".join(part for part in parts if part)


def present(comparisons: dict[str, Facts]) -> list[str]:
    """The contestants that took part, in order."""
    return [one for one in ROSTER.names if any(one in facts["contestants"] for facts in comparisons.values())]


def summary(comparisons: dict[str, Facts]) -> str:
    """One line per contestant; SQNR, agreement, share and casts are means over its valid results."""
    lines = []
    for one in present(comparisons):
        found = [
            (facts["contestants"][one], facts)
            for facts in comparisons.values()
            if one in facts["contestants"]
        ]
        lines.append([one, *counts(found), *means(found)])
    return markdown(SUMMARY, "|>>>>>>>>>>>>", lines)


def counts(found: list[tuple[Facts, Facts]]) -> list[str]:
    """How many results there are, and how many pass each test."""
    tests = [
        [True for _ in found],
        [entry.get("loads", False) for entry, _ in found],
        [entry.get("invalid") == "" or bool(about["invalid"]) for entry, about in found],
        [entry.get("finite", False) for entry, _ in found],
        [not flaw(entry, about) for entry, about in found],
        [not flaw(entry, about) and (known(entry, "sqnr") or 0) < FAR_OFF_DB for entry, about in found],
    ]
    return [str(sum(passed)) for passed in tests]


def means(found: list[tuple[Facts, Facts]]) -> list[str]:
    """Means over the valid results; the median time and the largest peak of all conversions."""
    valid = [entry for entry, about in found if not flaw(entry, about)]
    seconds = statistics.median(entry["seconds"] for entry, _ in found)
    peak = max(entry["peak_bytes"] for entry, _ in found)
    return [
        mean([known(entry, "sqnr") for entry in valid], ".1f"),
        mean([known(entry, "agreement") for entry in valid], ".2f"),
        mean([known(entry, "half") for entry in valid], ".1f"),
        mean([known(entry, "casts") for entry in valid], ".1f"),
        f"{seconds:.1f}",
        f"{peak / 1e6:.0f}",
    ]


def mean(values: list[float | None], form: str) -> str:
    """The mean of what is known and finite."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return format(statistics.mean(numbers), form) if numbers else "–"


def each(comparisons: dict[str, Facts]) -> str:
    """One line per model: SQNR, share of half and Casts added of each contestant, or what is wrong."""
    names = present(comparisons)
    lines = [
        [model, *(cell(facts["contestants"].get(one), facts) for one in names)]
        for model, facts in comparisons.items()
    ]
    return markdown(["model", *names], "|" * (1 + len(names)), lines)


def cell(entry: Facts | None, about: Facts) -> str:
    """What one contestant made of one model."""
    if entry is None:
        return "–"
    if found := flaw(entry, about):
        return found
    sqnr, half = known(entry, "sqnr"), known(entry, "half")
    decibels = "–" if sqnr is None else f"{sqnr:.1f} dB"
    share = "" if half is None else f", {half:.0f} %"
    return f"{decibels}{share}, {entry['casts']:+d}"
