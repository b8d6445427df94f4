"""The fastest model on a frontier of latency against accuracy that keeps the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from graphopt.precision import Task
from graphopt.proof.accuracy import Score
from graphopt.target import REFERENCE
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.partition import Costs, sweep

Nodes = frozenset[str]
_COMPARED = 8  # samples
_TWICE_DB = 3.0


@dataclass(frozen=True)
class Judged:
    """A draft, its score, whether it keeps the budget, and how."""

    draft: Draft
    score: Score
    kept: bool
    reason: str

    @classmethod
    def of(cls, task: Task, draft: Draft) -> Judged:
        """Judge a draft on the held-out samples."""
        score = task.judge.score(draft.path)
        draft.discard()
        return cls(draft, score, *task.budget.holds(score, task.judge.reference))


def miscompiled(task: Task, draft: Draft) -> list[str]:
    """A note if the runtime's fused kernels are much noisier than the operators of the graph on their own.

    They may differ by single steps of the grids; more is saturation in 16 bits, or a mistake of the runtime.
    """
    judge = task.judge.first(_COMPARED)
    fused = judge.score(draft.path).sqnr_db
    plain = replace(judge, target=REFERENCE, metric=None).score(draft.path).sqnr_db
    if fused is None or plain is None or fused > plain - _TWICE_DB:
        return []
    return [
        f"the runtime's integer kernels are noisier ({fused:.1f} dB) than the graph itself ({plain:.1f} dB)"
    ]


def nested(nodes: Nodes, costs: Costs | None, penalties: Mapping[str, float]) -> list[Nodes]:
    """Ever fewer of these nodes: from the fastest to the safest, without the first and the last of all.

    Args:
        nodes: the choice to start from.
        costs: measured; None if nothing was: then the noisiest leave first.
        penalties: what nodes cost in accuracy.
    """
    if costs is not None:
        found = [label.integers & nodes for label in sweep(costs)]
    else:
        order = sorted(penalties, key=penalties.__getitem__, reverse=True)
        found = [nodes - set(order[:count]) for count in range(1, len(order))]
    return [one for one in dict.fromkeys(found) if one and one != nodes]


def first_kept(task: Task, frontier: Sequence[Nodes], build: Callable[[Nodes], Draft]) -> Judged | None:
    """Bisect a frontier of nested choices, fastest first, for the first that keeps the budget.

    What is safer keeps it if this one does. ``None`` if none does, or nothing is left on integers.
    """
    found: Judged | None = None
    low, high = 0, len(frontier)
    while low < high:
        middle = (low + high) // 2
        task.progress("reverting what costs too much accuracy", len(frontier) - (high - low), len(frontier))
        draft = build(frontier[middle])
        trial = Judged.of(task, draft) if draft.nodes else None
        if trial is None:
            high = middle
        elif trial.kept:
            found, high = trial, middle
        else:
            low = middle + 1
    return found
