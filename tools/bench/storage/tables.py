"""Markdown table of weights stored in half precision, and whether the targets are reached."""

from __future__ import annotations

import textwrap
from typing import Any

from tools.bench.quantization.tables import LONGEST_REMARK, number
from tools.bench.tables import markdown, target

Facts = dict[str, Any]
HEAD = [
    "model",
    "type",
    "weights MB",
    "share %",
    "latency ratio",
    "load s",
    "SQNR dB",
    "rounded dB",
    "time s",
    "remarks",
]
MOST_SHARE = 51.0  # percent of the bytes of before
NEAR_DB = 3.0  # twice the noise: which errors cancel is chance


def page(comparisons: dict[str, Facts]) -> str:
    """One line per model and type, and the targets."""
    lines = [row(name, half, one) for name, halves in comparisons.items() for half, one in halves.items()]
    return f"{markdown(HEAD, '||>>>>>>>|', lines)}\n\n{targets(comparisons)}"


def row(name: str, half: str, entry: Facts) -> list[str]:
    """Cells of one result; a latency ratio above 1 is faster than without storage."""
    before, after = entry.get("before"), entry.get("after")
    return [
        name,
        half,
        "–" if before is None else f"{before / 1e6:.2f} → {after / 1e6:.2f}",
        number(share(entry), ".1f"),
        f"{entry['ratio']:.2f} ± {entry['noise']:.2f}" if "ratio" in entry else "–",
        f"{entry['load_before']:.3f} → {entry['load_after']:.3f}" if "ratio" in entry else "–",
        number(entry.get("sqnr"), ".1f"),
        number(entry.get("allowed"), ".1f"),
        number(entry.get("seconds"), ".1f"),
        textwrap.shorten(entry.get("why", ""), LONGEST_REMARK, placeholder=" …"),
    ]


def share(entry: Facts) -> float | None:
    """Percentage of the bytes of weights that is left; None if there were none, or there is no result."""
    return 100 * entry["after"] / entry["before"] if entry.get("before") else None


def targets(comparisons: dict[str, Facts]) -> str:
    """How many results reach each target, and which do not."""
    found = {f"{name} {half}": one for name, halves in comparisons.items() for half, one in halves.items()}
    tests = {
        f"at most {MOST_SHARE:.0f} % of the bytes": lambda one: (share(one) or 0.0) <= MOST_SHARE,
        "as fast within noise": lambda one: one["verdict"] != "slower",
        "error within rounding of the weights": is_within_rounding,
    }
    judged = ran(found)
    return "\n".join(
        target(name, {key: test(one) for key, one in judged.items()}, "results")
        for name, test in tests.items()
    )


def ran(found: dict[str, Facts]) -> dict[str, Facts]:
    """The results that were judged to the end."""
    return {key: one for key, one in found.items() if "verdict" in one}


def is_within_rounding(entry: Facts) -> bool:
    """Whether the outputs are no further off than those of a model whose weights are all rounded."""
    if entry["sqnr"] is None or entry["allowed"] is None:
        return True
    return bool(entry["sqnr"] >= entry["allowed"] - NEAR_DB)
