"""`python -m tools.bench quantization`: compare, print the tables, write JSON and the documentation."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tools import models
from tools.bench import options, pages
from tools.bench.asking import JudgeError
from tools.bench.quantization import comparison, contestants, tables, targets, tasks


def add(commands: Any) -> None:
    """Add the subcommand to the benchmarks' parser."""
    parser = commands.add_parser(
        "quantization", help="compare int8 with other quantizers", description=__doc__
    )
    names = list(tasks.MODULES)
    parser.add_argument(
        "--tasks", nargs="+", default=names, choices=names, metavar="TASK", help=", ".join(names)
    )
    options.add_contestants(parser, contestants.ROSTER.names)
    parser.add_argument("--latency", type=float, default=2, metavar="SECONDS", help="for one measurement")
    options.add_results(parser, "quantization")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Compare task by task; the JSON file keeps the tasks of earlier runs that are not run again."""
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
    )
    for task in chosen.tasks:
        print(task, file=sys.stderr)
        try:
            found[task] = comparison.compare(task, plan)
        except (JudgeError, models.FetchError) as error:
            print(f"{task}: {error}", file=sys.stderr)
        chosen.json.write_text(json.dumps(found, indent=1))
    ordered = {task: found[task] for task in tasks.MODULES if task in found}
    text = f"{tables.all_kinds(ordered)}\n\n### Targets\n\n{targets.table(ordered)}"
    print(text)
    if chosen.write_docs:
        pages.write("quantization", text)
