"""The table that the check prints."""

from __future__ import annotations

import textwrap
from typing import Any

from tools.bench.quantization.tables import LONGEST_REMARK, number
from tools.bench.tables import markdown

Facts = dict[str, Any]
HEAD = [
    "model",
    "type",
    "half %",
    "SQNR dB",
    "agreement %",
    "fp32 dB",
    "fp32 ms",
    "ms",
    "speed",
    "ok",
    "remarks",
]


def table(found: dict[tuple[str, str], Facts]) -> str:
    """One line per model and type; `fp32 dB` is the original on the device beside the CPU."""
    return markdown(HEAD, "||>>>>>>>||", [row(name, half, facts) for (name, half), facts in found.items()])


def row(name: str, half: str, facts: Facts) -> list[str]:
    """Cells of one result; a speed above 1 is faster than fp32."""
    speed = f"{facts['ratio']:.2f} ± {facts['noise']:.2f}" if "ratio" in facts else "–"
    return [
        name,
        half,
        number(facts.get("half"), ".0f"),
        number(facts.get("sqnr"), ".1f"),
        number(facts.get("agreement"), ".2f"),
        number(facts.get("fp32_sqnr"), ".1f"),
        number(facts.get("fp32_ms"), ".3f"),
        number(facts.get("ms"), ".3f"),
        speed,
        "no" if facts["why"] else "yes",
        textwrap.shorten(facts["why"] or facts.get("told", ""), LONGEST_REMARK, placeholder=" …"),
    ]
