"""Tables that are looked up, such as embeddings, as blocks of 8 bits: a quarter of their bytes.

No product is saved by it, so they are not placed for speed. They are rounded last, in the finished model,
and stay so if that keeps the budget and is no slower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphopt.precision import Task
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.frontier import Judged
from graphopt_passes.weights.build import Builder, Site
from graphopt_passes.weights.rounds import Rounder

_WORTH = 0.05  # of all weights' bytes, the share that must go


@dataclass(frozen=True)
class Tables:
    """What was rounded.

    Attributes:
        judged: the model with tables of 8 bits.
        nodes: first outputs of the nodes that look them up.
    """

    judged: Judged
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return f"tables that {len(self.nodes)} nodes look up have 8 bits"


def with_tables(task: Task, before: Judged) -> Tables | None:
    """The model with its tables rounded; ``None`` if there are none, or they had better stay as they are."""
    static = before.draft
    builder = Builder.of(replace(task, model=static.model), 8)
    sites = [site for site in builder.sites()[0] if site.ways == {"lookup"} and site.kernel]
    if not builder.has_kernels or _saved(sites) < _WORTH * static.model.weight_bytes:
        return None
    rounder = Rounder(builder.task, builder.base, symmetric=False)
    packed = dict(rounder.packed({site.name: 8 for site in sites}, "nearest"))
    draft = Draft(task, builder.build(packed.items()), static.nodes, static.dynamic)
    slower = task.measured and task.compare(static.path, draft.path).slower
    judged = Judged.of(task, draft)
    if slower or not judged.kept:
        return None
    return Tables(judged, tuple(node for site in sites if site.name in packed for node in site.nodes))


def _saved(sites: list[Site]) -> int:
    """Bytes: of four for each number, one is left."""
    return sum(3 * site.numbers for site in sites)
