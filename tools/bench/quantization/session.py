"""What the commands of comparisons share: the plan that options make, and results that grow from run to run.

Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tools import models
from tools.bench.asking import JudgeError
from tools.bench.quantization import comparison
from tools.bench.quantization.comparison import Facts, Plan
from tools.bench.roster import Roster


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


def earlier(chosen: argparse.Namespace) -> dict[str, Facts]:
    """Results by task that the JSON file keeps."""
    return json.loads(chosen.json.read_text()) if chosen.json.exists() else {}


def compare(task: str, plan: Plan, found: dict[str, Facts], chosen: argparse.Namespace) -> None:
    """Run one task and save all results; where it cannot be judged, say why and keep the earlier ones."""
    print(task, file=sys.stderr)
    try:
        found[task] = updated(found.get(task, {}), comparison.compare(task, plan))
    except (JudgeError, models.FetchError) as error:
        print(f"{task}: {error}", file=sys.stderr)
    chosen.json.write_text(json.dumps(found, indent=1))


def updated(before: Facts, after: Facts) -> Facts:
    """The facts of one task; contestants that did not take part again keep theirs."""
    return {**after, "contestants": {**before.get("contestants", {}), **after["contestants"]}}
