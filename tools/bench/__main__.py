"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools import models
from tools.bench import contestants, peers, tables
from tools.bench.half import command as half
from tools.bench.pruning import command as pruning
from tools.bench.pruning import memory as pruning_memory
from tools.bench.quantization import calibration
from tools.bench.quantization import command as quantization
from tools.bench.storage import command as storage
from tools.bench.weights import command as weights


def main() -> None:
    """`python -m tools.bench peers` and its siblings: compare, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    compare = commands.add_parser("peers", help="compare graphopt with other optimizers")
    compare.add_argument("--models", nargs="+", default=list(models.recipes()), metavar="NAME")
    compare.add_argument("--tools", nargs="+", default=contestants.NAMES, choices=contestants.NAMES)
    compare.add_argument(
        "--peers-python", default=sys.executable, help="interpreter with the peers installed"
    )
    compare.add_argument(
        "--repeat", type=int, default=3, help="runs per tool and model; medians are reported"
    )
    compare.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="time limit of one run")
    compare.add_argument(
        "--latency", type=float, default=2, metavar="SECONDS", help="time for measuring latency"
    )
    compare.add_argument("--json", type=Path, default=Path("peers.json"), metavar="FILE")
    compare.set_defaults(run=run_peers)
    quantization.add(commands)
    calibration.add(commands)
    half.add(commands)
    storage.add(commands)
    weights.add(commands)
    pruning.add(commands)
    pruning_memory.add(commands)
    options = parser.parse_args()
    options.run(options)


def run_peers(options: argparse.Namespace) -> None:
    """Compare model by model; the JSON file grows as the comparison goes on."""
    plan = peers.Plan(options.tools, options.peers_python, options.repeat, options.limit, options.latency)
    comparisons: peers.Comparisons = {}
    for name in options.models:
        print(name, file=sys.stderr)
        comparisons[name] = peers.compare(name, plan)
        peers.save(comparisons, options.json)
    print(tables.full(comparisons), tables.targets(comparisons), tables.medians(comparisons), sep="\n\n")


if __name__ == "__main__":
    main()
