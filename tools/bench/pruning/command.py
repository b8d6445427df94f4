"""`python -m tools.bench pruning`: compare, print the tables, write JSON and the documentation."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from tools.bench import options, running
from tools.bench.pruning import contestants, goals, tables
from tools.bench.quantization import session, tasks

SAMPLES = 1000


def add(commands: Any) -> None:
    """Add the subcommand to the benchmarks' parser."""
    parser = commands.add_parser("pruning", help="compare pruning with onnxsim's", description=__doc__)
    options.add_tasks(parser, list(tasks.PRUNING), latency=1)
    options.add_contestants(parser, contestants.ROSTER.names)
    options.add_results(parser, "pruning")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Compare task by task; the JSON file keeps what is not run again."""
    plan = session.plan(
        chosen, contestants.ROSTER, judge="tools.bench.pruning.judge", most_samples=SAMPLES, macs=False
    )

    def compare(task: str, known: running.Facts) -> running.Facts:
        present = [name for name in chosen.contestants if takes_part(name, task)]
        return session.comparing(replace(plan, contestants=present))(task, known)

    found = running.each(chosen.tasks, chosen, compare)
    running.publish(tables.page(running.ordered(found, list(tasks.PRUNING))), "pruning", chosen)


def takes_part(name: str, task: str) -> bool:
    """Whether a contestant runs on a task: those of the floor only where a goal asks for them."""
    cut = contestants.cut_of(name)
    return cut in contestants.CUTS or any((goal.task, goal.cut) == (task, cut) for goal in goals.GOALS)
