"""`python -m tools.bench pruning-memory`: time and memory of pruning a large network of drawn weights.

Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from tools import models
from tools.bench import descendants, options, pages
from tools.bench.conversion import environment
from tools.bench.process import measure
from tools.bench.pruning import contestants
from tools.bench.quantization import calibration
from tools.bench.tables import markdown

PART = "pruning-memory"
NAMES = [
    contestants.ours("sparsity 50 %"),
    contestants.ours("channels 50 %"),
    "onnxsim sparsegpt, sparsity 50 %",
    "onnxsim wanda-channels, channels 50 %",
]
HEAD = ["contestant", "time s", "memory MB", "largest process MB", "remarks"]


def add(commands: Any) -> None:
    """Add the subcommand to the benchmarks' parser."""
    parser = commands.add_parser(PART, help="memory of pruning a large model", description=__doc__)
    parser.add_argument("--model", default="vgg19", help="a network of drawn weights")
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="photographs to calibrate on")
    options.add_contestants(parser, NAMES)
    parser.add_argument("--work", type=Path, default=models.cache_folder() / "pruning", metavar="FOLDER")
    parser.add_argument("-w", "--write-docs", action="store_true", help="write docs/benchmarks.md")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Measure each contestant, and print the table."""
    folder = chosen.work.absolute() / PART
    model = calibration.prepared(chosen.model, chosen.samples, folder / "samples")
    lines = []
    for name in chosen.contestants:
        lines.append(row(name, model, folder, chosen))
        print(*lines[-1], sep="\t", file=sys.stderr)
    shutil.rmtree(folder)
    size = model.stat().st_size / 1e6
    text = f"{chosen.model}, {size:.0f} MB, {chosen.samples} samples.\n\n{markdown(HEAD, '|>>>|', lines)}"
    print(text)
    if chosen.write_docs:
        pages.write(PART, text)


def row(name: str, model: Path, folder: Path, chosen: argparse.Namespace) -> list[str]:
    """Cells of one contestant: the memory is of all its processes together."""
    command = contestants.command(
        name, model, folder / "samples", folder / "result.onnx", chosen.peers_python
    )
    limited = ["prlimit", f"--data={int(chosen.memory * 1e9)}:", *command]
    with descendants.peak() as peak:
        usage = measure(limited, chosen.limit, environment())
    failed = f"exit {usage.exit_code}: {usage.message}" if usage.exit_code else ""
    sizes = f"{peak.bytes / 1e6:.0f}", f"{usage.peak_bytes / 1e6:.0f}"
    return [name, f"{usage.seconds:.0f}", *sizes, failed]
