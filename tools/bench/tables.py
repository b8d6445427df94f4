"""Markdown tables of a comparison."""

from __future__ import annotations

import statistics

from tools.bench.contestants import GRAPHOPT, PEERS
from tools.bench.peers import Comparisons, Entry


def best(entries: dict[str, Entry]) -> str | None:
    """The peer whose valid result has the fewest nodes; of two alike, the faster."""
    valid = [tool for tool, entry in entries.items() if tool in PEERS and entry.valid]
    return min(valid, key=lambda tool: (entries[tool].nodes, entries[tool].seconds), default=None)


def full(comparisons: Comparisons) -> str:
    """Everything: one line per model and tool."""
    head = ["model", "tool", "nodes", "size MB", "wall s", "peak MB", "latency ratio", "valid"]
    lines = [row(name, tool, entry) for name, tools in comparisons.items() for tool, entry in tools.items()]
    return markdown(head, "||>>>>>|", lines)


def row(name: str, tool: str, entry: Entry) -> list[str]:
    """Cells of one model and tool."""
    return [
        name,
        tool,
        "–" if entry.nodes is None else str(entry.nodes),
        "–" if entry.bytes is None else f"{entry.bytes / 1e6:.2f}",
        f"{entry.seconds:.2f}" if entry.seconds else "–",
        f"{entry.peak_bytes / 1e6:.0f}" if entry.peak_bytes else "–",
        f"{entry.latency_ratio:.2f}" if entry.latency_ratio else "–",
        "yes" if entry.valid else f"no: {entry.why}",
    ]


def targets(comparisons: Comparisons) -> str:
    """Nodes of the original, of graphopt and of the best valid peer; one line per model."""
    lines = []
    for name, entries in comparisons.items():
        peer = best(entries)
        fewest = str(entries[peer].nodes) if peer else "–"
        lines.append([name, nodes(entries, "original"), nodes(entries, GRAPHOPT), fewest, peer or "–"])
    return markdown(["model", "original", GRAPHOPT, "best valid peer", "by"], "|>>>|", lines)


def nodes(entries: dict[str, Entry], tool: str) -> str:
    """Nodes that `tool` left, marked if its result is not valid."""
    entry = entries.get(tool)
    if entry is None or entry.nodes is None:
        return "–"
    return f"{entry.nodes}{'' if entry.valid else ' (not valid)'}"


def medians(comparisons: Comparisons) -> str:
    """Wall time and peak memory of each tool: medians over the models, and the largest peak."""
    lines = []
    for tool in [GRAPHOPT, *PEERS]:
        entries = [tools[tool] for tools in comparisons.values() if tool in tools]
        if entries:
            seconds = statistics.median(entry.seconds for entry in entries)
            peaks = [entry.peak_bytes / 1e6 for entry in entries]
            valid = sum(entry.valid for entry in entries)
            cells = [f"{seconds:.2f}", f"{statistics.median(peaks):.0f}", f"{max(peaks):.0f}"]
            lines.append([tool, *cells, f"{valid} of {len(entries)}"])
    return markdown(
        ["tool", "wall s, median", "peak MB, median", "peak MB, largest", "valid"], "|>>>>", lines
    )


def markdown(head: list[str], alignment: str, lines: list[list[str]]) -> str:
    """A table; `alignment` has a `>` for each column that is aligned to the right."""
    rule = ["-:" if side == ">" else "-" for side in alignment]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in [head, *lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]])


def target(name: str, reached: dict[str, bool], of: str) -> str:
    """One line of a list: how many reach a target, out of how many `of` these, and which do not."""
    missed = [key for key, is_reached in reached.items() if not is_reached]
    tail = f"; not {', '.join(missed)}" if missed else ""
    return f"- {name}: {len(reached) - len(missed)} of {len(reached)} {of}{tail}"
