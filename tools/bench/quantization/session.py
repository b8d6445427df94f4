"""What comparisons of contestants share: the plan that options make, and results that grow from run to run.

Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

import argparse
from typing import Any

from tools.bench.quantization import comparison
from tools.bench.quantization.comparison import Facts, Plan
from tools.bench.roster import Roster
from tools.bench.running import Compare


def plan(chosen: argparse.Namespace, roster: Roster, **more: Any) -> Plan:
    """The plan of `options.add_contestants`, `options.add_results` and ``--latency``."""
    return Plan(
        contestants=chosen.contestants,
        roster=roster,
        peers_python=chosen.peers_python,
        work=chosen.work,
        limit_s=chosen.limit,
        limit_bytes=int(chosen.memory * 1e9),
        seconds=chosen.latency,
        reuse=chosen.reuse,
        **more,
    )


def comparing(plan: Plan) -> Compare:
    """What compares one task of a plan."""
    return lambda task, known: updated(known, comparison.compare(task, plan))


def updated(before: Facts, after: Facts) -> Facts:
    """The facts of one task; contestants that did not take part again keep theirs."""
    return {**after, "contestants": {**before.get("contestants", {}), **after["contestants"]}}
