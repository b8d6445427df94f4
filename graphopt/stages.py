"""Which stages of a run may change what the model computes, in which order, and what each may cost.

Channels go first, since all that follows gets smaller with them; then layers are split or tied, and zeros
and shared values come last, for any other stage would fill or spread them. Precision is lowered on what is
left, and stored as what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt import registry
from graphopt.proof.budget import Budget

if TYPE_CHECKING:
    from graphopt.options import Options
    from graphopt.precision import Lowering


@dataclass(frozen=True)
class Stage:
    """One of them.

    Attributes:
        title: how messages call it.
        doing: what it does, as progress tells it.
        lower: does it.
        budget: what may be lost once it is done, all stages before it included.
        prunes: whether it removes something, rather than lowers precision.
    """

    title: str
    doing: str
    lower: Lowering
    budget: Budget
    prunes: bool


def stages(options: Options) -> list[Stage]:
    """The stages that were asked for, in order.

    With ``--max-drop`` they share the budget: after the first of two that prune or lower, half of it may be
    used. Without it what has a share is done at any cost, and what has none gets the default budget.
    """
    pruning = list(_pruning(options))
    count = len(pruning) + (options.precision is not None)
    found = []
    for place, (name, bounded) in enumerate(pruning, 1):
        budget = options.budget.part(place / count) if bounded else Budget.unbounded()
        found.append(Stage(f"--{name}", f"pruning: {name}", registry.pruning(name), budget, prunes=True))
    return found + list(_lowering(options))


def _pruning(options: Options) -> Iterator[tuple[str, bool]]:
    """Names, and whether what is lost is bounded."""
    bounded = options.max_drop is not None
    asked: dict[str, object] = {**options.amounts, "circulant": options.circulant, "cluster": options.cluster}
    for name in ("channels", "rank", "circulant", "sparsity", "cluster"):
        if asked.get(name) is not None:
            amount = options.amounts.get(name)
            yield name, bounded or (amount is not None and amount.share is None)


def _lowering(options: Options) -> Iterator[Stage]:
    if (name := options.precision) is not None:
        yield Stage(name, f"lowering to {name}", registry.precision(name), options.budget, prunes=False)
    if (name := options.store) is not None:
        title = f"storage as {name}"
        yield Stage(title, f"lowering to {title}", registry.store(name), options.budget, prunes=False)
