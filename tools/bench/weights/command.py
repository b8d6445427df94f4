"""`python -m tools.bench weights`: compare, print the tables, write JSON and the documentation."""

from __future__ import annotations

import argparse
from typing import Any

from tools.bench import options, running
from tools.bench.quantization import session, tasks
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
    plan = session.plan(chosen, contestants.ROSTER, macs=False)
    found = running.each(chosen.tasks, chosen, session.comparing(plan))
    running.publish(tables.page(running.ordered(found, list(tasks.LANGUAGE))), "weights", chosen)
