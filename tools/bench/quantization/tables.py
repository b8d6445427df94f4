"""Markdown tables of a comparison: one per kind of task."""

from __future__ import annotations

import textwrap
from typing import Any

from tools.bench.roster import ORIGINAL
from tools.bench.tables import markdown

Facts = dict[str, Any]
LONGEST_REMARK = 100
HEAD = [
    "task",
    "contestant",
    "metric",
    "agreement",
    "SQNR dB",
    "speed",
    "int8 MACs %",
    "time s",
    "memory MB",
    "remarks",
]


def all_kinds(comparisons: dict[str, Facts]) -> str:
    """One section with a table per kind, in the order of the tasks."""
    kinds = dict.fromkeys(facts["kind"] for facts in comparisons.values() if "kind" in facts)
    return "\n\n".join(f"### {kind}\n\n{of_kind(comparisons, kind)}" for kind in kinds)


def of_kind(comparisons: dict[str, Facts], kind: str) -> str:
    """The table of one kind of task, and below it what its columns measure."""
    chosen = {task: facts for task, facts in comparisons.items() if facts.get("kind") == kind}
    lines = [
        row(task, name, entry, list(speeds(facts)))
        for task, facts in chosen.items()
        for name, entry in facts["contestants"].items()
    ]
    notes = [note(task, facts) for task, facts in chosen.items()]
    return "\n\n".join([markdown(HEAD, "||>>>>>>>|", lines), "\n".join(notes)])


def note(task: str, facts: Facts) -> str:
    """What is measured in the lines of one task."""
    metric = f"metric: {facts['metric']}; " if facts["metric"] else ""
    workloads = ", ".join(speeds(facts)) or "nothing"
    return (
        f"- {task}: {metric}agreement: {facts['agreement_is']};"
        f" {facts['calibration']} calibration samples; speed at {workloads}"
    )


def speeds(facts: Facts) -> dict[str, Any]:
    """The speeds of the first contestant that has any."""
    return next((entry["speed"] for entry in facts["contestants"].values() if "speed" in entry), {})


def row(task: str, name: str, entry: Facts, workloads: list[str]) -> list[str]:
    """Cells of one contestant; a speed above 1 is faster than fp32."""
    speed = (
        " / ".join(f"{entry['speed'][load]['ratio']:.2f}" for load in workloads) if "speed" in entry else ""
    )
    return [
        task,
        name,
        number(entry.get("metric"), ".2f"),
        number(entry.get("agreement"), ".2f"),
        number(entry.get("sqnr"), ".1f"),
        speed or ("1" if name == ORIGINAL else "–"),
        number(entry.get("integer_macs"), ".0f"),
        number(entry.get("seconds"), ".1f"),
        number(entry["peak_bytes"] / 1e6 if "peak_bytes" in entry else None, ".0f"),
        textwrap.shorten(entry.get("why", ""), LONGEST_REMARK, placeholder=" …"),
    ]


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else format(value, form)
