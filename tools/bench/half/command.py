"""`python -m tools.bench half`: compare, print the tables, write JSON and the documentation."""

from __future__ import annotations

import argparse
from typing import Any

from tools import models
from tools.bench import options, running
from tools.bench.conversion import Limits
from tools.bench.half import comparison, contestants, tables


def add(commands: Any) -> None:
    """Add the subcommand to the benchmarks' parser."""
    parser = commands.add_parser("half", help="compare fp16 with other converters", description=__doc__)
    parser.add_argument("--models", nargs="+", default=options.real_models(), metavar="NAME")
    options.add_contestants(parser, contestants.ROSTER.names)
    options.add_results(parser, "half")
    parser.add_argument("--keep", action="store_true", help="leave all results in the folder")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Compare model by model; the JSON file keeps what is not run again."""
    limits = Limits(chosen.limit, int(chosen.memory * 1e9))
    plan = comparison.Plan(
        contestants=chosen.contestants,
        roster=contestants.ROSTER,
        peers_python=chosen.peers_python,
        work=chosen.work,
        limits=limits,
        reuse=chosen.reuse,
        keep=chosen.keep or chosen.reuse,
    )
    found = running.each(chosen.models, chosen, lambda name, known: comparison.compare(name, plan, known))
    running.publish(tables.page(running.ordered(found, list(models.recipes()))), "half", chosen)
