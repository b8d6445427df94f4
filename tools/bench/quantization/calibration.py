"""`python -m tools.bench calibration`: time and memory of quantizing, by the number of samples.

graphopt and ONNX Runtime's quantize_static, with min-max ranges, on one of the networks of drawn weights; of
graphopt also the time of calibrating alone, since the rest of its time is work that the other does not do.
Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools import models
from tools.bench import pages
from tools.bench.conversion import environment
from tools.bench.process import Usage, measure
from tools.bench.quantization import contestants
from tools.bench.tables import markdown

ORT = "ORT U8S8 min-max"
HEAD = ["samples", "contestant", "calibrating s", "all s", "memory MB", "remarks"]


def add(commands: Any) -> None:
    """Add the subcommand to the benchmarks' parser."""
    parser = commands.add_parser(
        "calibration", help="time and memory by number of samples", description=__doc__
    )
    parser.add_argument("--model", default="resnet50", help="a network of drawn weights")
    parser.add_argument("--counts", nargs="+", type=int, default=[100, 2000], metavar="N")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter with the peers installed")
    parser.add_argument("--limit", type=float, default=3600, metavar="SECONDS", help="for one quantization")
    parser.add_argument("--work", type=Path, default=models.cache_folder() / "quantization", metavar="FOLDER")
    parser.add_argument("-w", "--write-docs", action="store_true", help="write docs/benchmarks.md")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure each contestant on each number of samples, and print the table."""
    folder = options.work / "calibration"
    lines = []
    for count in options.counts:
        model = prepared(options.model, count, folder / "samples")
        for name in (contestants.GRAPHOPT, ORT):
            files = (model, folder / "samples", folder / "result.onnx")
            usage = measure(command(name, *files, options.peers_python), options.limit, environment())
            lines.append(row(count, name, usage))
            print(*lines[-1], sep="\t", file=sys.stderr)
        shutil.rmtree(folder)
    text = f"Model: {options.model}.\n\n{markdown(HEAD, '>|>>>|', lines)}"
    print(text)
    if options.write_docs:
        pages.write("calibration", text)


def prepared(name: str, count: int, folder: Path) -> Path:
    """Write the samples into a folder, in a process of its own; the path of the model."""
    command = [sys.executable, "-m", "tools.bench.quantization.tasks.drawn", name, str(count), str(folder)]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def command(name: str, model: Path, samples: Path, result: Path, peers_python: str) -> list[str]:
    """As in the comparison of quality, but with min-max ranges, and graphopt timing its calibration."""
    if name != contestants.GRAPHOPT:
        return contestants.command(name, model, samples, result, peers_python)
    stages = [sys.executable, "-m", "tools.bench.quantization.stages"]
    return [*stages, str(model), str(samples), str(result)]


def row(count: int, name: str, usage: Usage) -> list[str]:
    """Cells of one run."""
    failed = f"exit {usage.exit_code}: {usage.message}" if usage.exit_code else ""
    calibrating = usage.message if name == contestants.GRAPHOPT and not failed else "–"
    cells = [f"{usage.seconds:.1f}", f"{usage.peak_bytes / 1e6:.0f}", failed]
    return [str(count), name, calibrating, *cells]
