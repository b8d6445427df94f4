"""What graphopt's pruning must not fall below on the trained models, whatever others do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tools.bench.pruning.contestants import ours
from tools.bench.roster import ORIGINAL
from tools.bench.tables import markdown

Facts = dict[str, Any]
HEAD = ["task", "cut", "drop", "at most", "speed", "at least", "reached"]


@dataclass(frozen=True)
class Goal:
    """A cut of one task.

    Attributes:
        most_drop: in points of the metric.
        least_speed: times the original's, at every workload; None where none is promised.
    """

    task: str
    cut: str
    most_drop: float
    least_speed: float | None = None


GOALS = [
    Goal("fashion_cnn", "sparsity 50 %", 0.1),
    Goal("fashion_cnn", "sparsity 80 %", 0.5),
    Goal("fashion_cnn", "2:4", 0.2),
    Goal("fashion_cnn", "half the MACs", 1.0, 1.5),
    Goal("fashion_cnn", "half the MACs and int8", 1.2, 1.8),
    Goal("fashion_resnet", "sparsity 50 %", 0.15),
    Goal("fashion_resnet", "sparsity 80 %", 2.5),
    Goal("fashion_resnet", "channels 30 %", 0.4, 1.2),
    Goal("fashion_resnet", "channels 50 %", 1.2, 1.4),
]


def table(comparisons: dict[str, Facts]) -> str:
    """One line per goal that was run; empty if there is none."""
    lines = [
        line(goal, comparisons[goal.task]["contestants"])
        for goal in GOALS
        if ours(goal.cut) in comparisons.get(goal.task, {}).get("contestants", {})
    ]
    return markdown(HEAD, "||>>>>|", lines) if lines else ""


def line(goal: Goal, entries: dict[str, Facts]) -> list[str]:
    """Cells of one goal."""
    entry = entries[ours(goal.cut)]
    least = "–" if goal.least_speed is None else f"{goal.least_speed:.1f}"
    if "speed" not in entry:
        return [goal.task, goal.cut, "–", f"{goal.most_drop:.2f}", "–", least, f"no: {entry['why']}"]
    lost = entries[ORIGINAL]["metric"] - entry["metric"]
    speeds = [load["ratio"] for load in entry["speed"].values()]
    reached = lost <= goal.most_drop and (goal.least_speed is None or min(speeds) >= goal.least_speed)
    shown = " / ".join(f"{speed:.2f}" for speed in speeds)
    drop = f"{lost:.2f}"
    return [goal.task, goal.cut, drop, f"{goal.most_drop:.2f}", shown, least, "yes" if reached else "no"]
