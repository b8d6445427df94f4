"""`python -m tools.bench half`: compare, print the tables, write JSON and the documentation."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tools import models
from tools.bench import options, pages
from tools.bench.asking import JudgeError
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
    found = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
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
    for name in chosen.models:
        print(name, file=sys.stderr)
        try:
            found[name] = comparison.compare(name, plan, found.get(name, {}))
        except (JudgeError, models.FetchError) as error:
            print(f"{name}: {error}", file=sys.stderr)
        chosen.json.write_text(json.dumps(found, indent=1))
    text = tables.page({name: found[name] for name in models.recipes() if name in found})
    print(text)
    if chosen.write_docs:
        pages.write("half", text)
