"""Markdown tables of the comparison of weights of few bits."""

from __future__ import annotations

import textwrap
from typing import Any

from tools.bench.quantization.tables import LONGEST_REMARK, note, number, speeds
from tools.bench.roster import ORIGINAL
from tools.bench.tables import markdown
from tools.bench.weights import targets
from tools.bench.weights.contestants import ROSTER

Facts = dict[str, Any]
HEAD = [
    "task",
    "contestant",
    "metric",
    "agreement",
    "SQNR dB",
    "speed",
    "size MB",
    "time s",
    "memory MB",
    "remarks",
]


def page(comparisons: dict[str, Facts]) -> str:
    """All tasks in one table, what its columns measure, and the targets."""
    lines = [line for task, facts in comparisons.items() for line in rows(task, facts)]
    notes = "\n".join(note(task, facts) for task, facts in comparisons.items())
    parts = [markdown(HEAD, "||>>>>>>>|", lines), notes, targets.text(comparisons)]
    return "\n\n".join(part for part in parts if part)


def rows(task: str, facts: Facts) -> list[list[str]]:
    """The lines of one task: fp32, then the contestants in order."""
    entries = facts["contestants"]
    names = [name for name in (ORIGINAL, *ROSTER.names) if name in entries]
    return [row(task, name, entries[name], list(speeds(facts))) for name in names]


def row(task: str, name: str, entry: Facts, workloads: list[str]) -> list[str]:
    """Cells of one contestant; a speed above 1 is faster than fp32."""
    speed = " / ".join(f"{entry['speed'][load]['ratio']:.2f}" for load in workloads if "speed" in entry)
    return [
        task,
        name,
        number(entry.get("metric"), ".4f"),
        number(entry.get("agreement"), ".2f"),
        number(entry.get("sqnr"), ".1f"),
        speed or ("1" if name == ORIGINAL else "–"),
        number(entry["bytes"] / 1e6 if entry.get("bytes") else None, ".2f"),
        number(entry.get("seconds"), ".1f"),
        number(entry["peak_bytes"] / 1e6 if "peak_bytes" in entry else None, ".0f"),
        textwrap.shorten(entry.get("why", ""), LONGEST_REMARK, placeholder=" …"),
    ]
