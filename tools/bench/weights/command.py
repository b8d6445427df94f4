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
    options.add_tasks(parser, list(tasks.LANGUAGE), latency=4)
    options.add_contestants(parser, contestants.ROSTER.names)
    options.add_results(parser, "weights")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Compare task by task; the JSON file keeps what is not run again."""
    plan = session.plan(chosen, contestants.ROSTER, macs=False)
    found = running.each(chosen.tasks, chosen, session.comparing(plan))
    running.publish(tables.page(running.ordered(found, list(tasks.LANGUAGE))), "weights", chosen)
