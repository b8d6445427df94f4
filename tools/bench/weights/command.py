"""`python -m tools.bench weights`: compare, print the tables, write JSON and the documentation."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tools import models
from tools.bench import options, pages
from tools.bench.asking import JudgeError
from tools.bench.quantization import comparison, tasks
from tools.bench.weights import contestants, tables


def add(commands: Any) -> None:
    """Add the subcommand to the benchmarks' parser."""
    parser = commands.add_parser("weights", help="compare weights of few bits", description=__doc__)
    names = list(tasks.LANGUAGE)
    parser.add_argument("--tasks", nargs="+", default=names, choices=names, metavar="TASK")
    options.add_contestants(parser, contestants.ROSTER.names)
    parser.add_argument("--latency", type=float, default=4, metavar="SECONDS", help="for one measurement")
    options.add_results(parser, "weights")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Compare task by task; the JSON file keeps what is not run again."""
    found = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
    plan = comparison.Plan(
        contestants=chosen.contestants,
        roster=contestants.ROSTER,
        peers_python=chosen.peers_python,
        work=chosen.work,
        limit_s=chosen.limit,
        limit_bytes=int(chosen.memory * 1e9),
        seconds=chosen.latency,
        reuse=chosen.reuse,
        macs=False,
    )
    for task in chosen.tasks:
        print(task, file=sys.stderr)
        try:
            found[task] = updated(found.get(task, {}), comparison.compare(task, plan))
        except (JudgeError, models.FetchError) as error:
            print(f"{task}: {error}", file=sys.stderr)
        chosen.json.write_text(json.dumps(found, indent=1))
    text = tables.page({task: found[task] for task in tasks.LANGUAGE if task in found})
    print(text)
    if chosen.write_docs:
        pages.write("weights", text)


def updated(before: comparison.Facts, after: comparison.Facts) -> comparison.Facts:
    """The facts of one task; contestants that did not take part again keep theirs."""
    return {**after, "contestants": {**before.get("contestants", {}), **after["contestants"]}}
