"""`python -m tools.bench half`: compare, print the tables, write JSON and the documentation."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tools import models
from tools.bench import pages
from tools.bench.asking import JudgeError
from tools.bench.conversion import Limits
from tools.bench.half import comparison, contestants, tables


def add(commands: Any) -> None:
    """Add the subcommand to the benchmarks' parser."""
    parser = commands.add_parser("half", help="compare fp16 with other converters", description=__doc__)
    most = contestants.NAMES
    parser.add_argument("--models", nargs="+", default=real_models(), metavar="NAME")
    parser.add_argument(
        "--contestants", nargs="+", default=most, choices=most, metavar="NAME", help=", ".join(most)
    )
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter with the peers installed")
    parser.add_argument("--limit", type=float, default=900, metavar="SECONDS", help="for one conversion")
    parser.add_argument("--memory", type=float, default=12, metavar="GB", help="for one conversion")
    parser.add_argument("--work", type=Path, default=models.cache_folder() / "half", metavar="FOLDER")
    parser.add_argument("--reuse", action="store_true", help="take the peers' results of an earlier run")
    parser.add_argument("--keep", action="store_true", help="leave all results in the folder")
    parser.add_argument("--json", type=Path, default=Path("half.json"), metavar="FILE")
    parser.add_argument(
        "-w", "--write-docs", action="store_true", help="write the tables into docs/benchmarks.md"
    )
    parser.set_defaults(run=run)


def real_models() -> list[str]:
    """All models but onnx's light ones as they are: their weights are made by the graph, and all alike."""
    return [name for name in models.recipes() if not name.startswith("light_")]


def run(options: argparse.Namespace) -> None:
    """Compare model by model; the JSON file keeps what is not run again."""
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    limits = Limits(options.limit, int(options.memory * 1e9))
    plan = comparison.Plan(
        contestants=options.contestants,
        peers_python=options.peers_python,
        work=options.work,
        limits=limits,
        reuse=options.reuse,
        keep=options.keep or options.reuse,
    )
    for name in options.models:
        print(name, file=sys.stderr)
        try:
            found[name] = comparison.compare(name, plan, found.get(name, {}))
        except (JudgeError, models.FetchError) as error:
            print(f"{name}: {error}", file=sys.stderr)
        options.json.write_text(json.dumps(found, indent=1))
    text = tables.page({name: found[name] for name in models.recipes() if name in found})
    print(text)
    if options.write_docs:
        pages.write("half", text)
