"""`python -m tools.bench quantization`: compare, print the tables, write JSON and the documentation."""

from __future__ import annotations

import argparse
from typing import Any

from tools.bench import options, running
from tools.bench.quantization import contestants, session, tables, targets, tasks


def add(commands: Any) -> None:
    """Add the subcommand to the benchmarks' parser."""
    parser = commands.add_parser(
        "quantization", help="compare int8 with other quantizers", description=__doc__
    )
    options.add_tasks(parser, list(tasks.MODULES), latency=2)
    options.add_contestants(parser, contestants.ROSTER.names)
    options.add_results(parser, "quantization")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Compare task by task; the JSON file keeps the tasks of earlier runs that are not run again."""
    plan = session.plan(chosen, contestants.ROSTER)
    found = running.each(chosen.tasks, chosen, session.comparing(plan))
    ordered = running.ordered(found, list(tasks.MODULES))
    text = f"{tables.all_kinds(ordered)}\n\n### Targets\n\n{targets.table(ordered)}"
    running.publish(text, "quantization", chosen)
