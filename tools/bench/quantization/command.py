"""`python -m tools.bench quantization`: compare, print the tables, write JSON and the documentation."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tools import models
from tools.bench import pages
from tools.bench.asking import JudgeError
from tools.bench.quantization import comparison, contestants, tables, targets, tasks


def add(commands: Any) -> None:
    """Add the subcommand to the benchmarks' parser."""
    parser = commands.add_parser(
        "quantization", help="compare int8 with other quantizers", description=__doc__
    )
    names, most = list(tasks.MODULES), contestants.NAMES
    parser.add_argument(
        "--tasks", nargs="+", default=names, choices=names, metavar="TASK", help=", ".join(names)
    )
    parser.add_argument(
        "--contestants", nargs="+", default=most, choices=most, metavar="NAME", help=", ".join(most)
    )
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter with the peers installed")
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="for one quantization")
    parser.add_argument("--memory", type=float, default=12, metavar="GB", help="for one quantization")
    parser.add_argument("--latency", type=float, default=2, metavar="SECONDS", help="for one measurement")
    parser.add_argument("--work", type=Path, default=models.cache_folder() / "quantization", metavar="FOLDER")
    parser.add_argument("--reuse", action="store_true", help="take the peers' results of an earlier run")
    parser.add_argument("--json", type=Path, default=Path("quantization.json"), metavar="FILE")
    parser.add_argument(
        "-w", "--write-docs", action="store_true", help="write the tables into docs/benchmarks.md"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Compare task by task; the JSON file keeps the tasks of earlier runs that are not run again."""
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    plan = comparison.Plan(
        contestants=options.contestants,
        peers_python=options.peers_python,
        work=options.work,
        limit_s=options.limit,
        limit_bytes=int(options.memory * 1e9),
        seconds=options.latency,
        reuse=options.reuse,
    )
    for task in options.tasks:
        print(task, file=sys.stderr)
        try:
            found[task] = comparison.compare(task, plan)
        except (JudgeError, models.FetchError) as error:
            print(f"{task}: {error}", file=sys.stderr)
        options.json.write_text(json.dumps(found, indent=1))
    ordered = {task: found[task] for task in tasks.MODULES if task in found}
    text = f"{tables.all_kinds(ordered)}\n\n### Targets\n\n{targets.table(ordered)}"
    print(text)
    if options.write_docs:
        pages.write("quantization", text)
