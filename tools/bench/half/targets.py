"""What makes a converted model valid, and whether graphopt reaches what the comparison asks of it.

All of graphopt's results are valid; among the valid results with at least as large a share of half precision
it has the best SQNR, and it adds the fewest Casts.
"""

from __future__ import annotations

import math
from typing import Any

from tools.bench.half.contestants import GRAPHOPT, PEERS
from tools.bench.tables import target

Facts = dict[str, Any]
SAME_SHARE = 1.0  # percent of multiply-accumulates
SAME_DB = 0.1


def flaw(entry: Facts, about: Facts) -> str:
    """What is wrong with a result, in a word or two; empty if it is valid.

    A result need not pass the checker if its original does not either.
    """
    if "loads" not in entry:
        return "out of time" if entry["why"].startswith("exit -9") else "fails"
    if not entry["loads"]:
        return "does not load"
    if entry["invalid"] and not about["invalid"]:
        return "checker fails"
    return "" if entry["finite"] else "NaN, Inf or zeros"


def known(entry: Facts, key: str) -> float | None:
    """A number of a result, None where it has none."""
    value = entry.get(key)
    return None if value is None else float(value)


def text(comparisons: dict[str, Facts]) -> str:
    """How many models reach each target, and which do not; empty if graphopt took no part."""
    found = {model: facts for model, facts in comparisons.items() if GRAPHOPT in facts["contestants"]}
    tests = {
        "valid": {model: valid(facts) for model, facts in found.items()},
        "best SQNR at this share of half precision": {m: best_sqnr(facts) for m, facts in found.items()},
        "fewest casts": {model: fewest_casts(facts) for model, facts in found.items()},
    }
    return "\n".join(target(name, reached, "models") for name, reached in tests.items()) if found else ""


def valid(facts: Facts) -> bool:
    """Whether graphopt's result has no flaw."""
    return not flaw(facts["contestants"][GRAPHOPT], facts)


def rivals(facts: Facts) -> list[Facts]:
    """The peers' valid results."""
    return [entry for name, entry in facts["contestants"].items() if name in PEERS and not flaw(entry, facts)]


def alike(facts: Facts) -> list[Facts]:
    """Those of them with at least as large a share of half precision as graphopt's."""
    share = (known(facts["contestants"][GRAPHOPT], "half") or 0.0) - SAME_SHARE
    return [peer for peer in rivals(facts) if (known(peer, "half") or 0.0) >= share]


def best_sqnr(facts: Facts) -> bool:
    """Whether no valid result with as much half precision is nearer to the original."""
    ours = facts["contestants"][GRAPHOPT]
    return valid(facts) and all(decibels(ours) >= decibels(peer) - SAME_DB for peer in alike(facts))


def decibels(entry: Facts) -> float:
    """SQNR, minus infinity where there is none."""
    value = known(entry, "sqnr")
    return -math.inf if value is None else value


def fewest_casts(facts: Facts) -> bool:
    """Whether no valid result with as much half precision has fewer Casts."""
    ours = facts["contestants"][GRAPHOPT]
    return valid(facts) and all(ours["casts"] <= peer["casts"] for peer in alike(facts))
