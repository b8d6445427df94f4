"""Markdown tables of the comparison of pruning."""

from __future__ import annotations

import textwrap
from typing import Any

from tools.bench.pruning import goals, targets
from tools.bench.quantization.tables import LONGEST_REMARK, note, number, speeds
from tools.bench.roster import ORIGINAL
from tools.bench.tables import markdown

Facts = dict[str, Any]
HEAD = [
    "contestant",
    "metric",
    "agreement",
    "SQNR dB",
    "speed",
    "weights %",
    "zeros %",
    "MACs %",
    "size kB",
    "packed kB",
    "time s",
    "memory MB",
    "remarks",
]


def page(comparisons: dict[str, Facts]) -> str:
    """One section per task, then whether graphopt beats the peer, and what it must not fall below."""
    parts = [f"### {task}\n\n{of_task(task, facts)}" for task, facts in comparisons.items()]
    for title, text in (
        ("Beside the peer", targets.table(comparisons)),
        ("The floor", goals.table(comparisons)),
    ):
        parts += [f"### {title}\n\n{text}"] if text else []
    return "\n\n".join(parts)


def of_task(task: str, facts: Facts) -> str:
    """The table of one task: fp32, then for each cut graphopt and the best method of the peer."""
    entries = facts["contestants"]
    loads = list(speeds(facts))
    lines = [row(name, entries[name], entries[ORIGINAL], loads) for name in targets.shown(entries)]
    return f"{markdown(HEAD, '|>>>>>>>>>>>|', lines)}\n\n{note(task, facts)}"


def row(name: str, entry: Facts, original: Facts, loads: list[str]) -> list[str]:
    """Cells of one contestant; a speed above 1 is faster than fp32."""
    speed = " / ".join(f"{entry['speed'][load]['ratio']:.2f}" for load in loads if "speed" in entry)
    return [
        name,
        number(entry.get("metric"), ".2f"),
        number(entry.get("agreement"), ".2f"),
        number(entry.get("sqnr"), ".1f"),
        speed or ("1" if name == ORIGINAL else "–"),
        percent(entry.get("weights"), original.get("weights")),
        percent(entry.get("zeros"), entry.get("weights")),
        percent(entry.get("macs"), original.get("macs")),
        number(entry["bytes"] / 1e3 if entry.get("bytes") else None, ".0f"),
        number(entry["compressed"] / 1e3 if "compressed" in entry else None, ".0f"),
        number(entry.get("seconds"), ".1f"),
        number(entry["peak_bytes"] / 1e6 if "peak_bytes" in entry else None, ".0f"),
        textwrap.shorten(entry.get("why", ""), LONGEST_REMARK, placeholder=" …"),
    ]


def percent(part: int | None, whole: int | None) -> str:
    """A share, or a dash where it is not known."""
    return "–" if part is None or not whole else f"{100 * part / whole:.0f}"
