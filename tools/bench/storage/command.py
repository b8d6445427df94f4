"""`python -m tools.bench storage`: store the weights of every real model as fp16 and bf16, and judge it.

Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import models
from tools.bench import options, running
from tools.bench.asking import JudgeError, ask
from tools.bench.conversion import Limits, convert
from tools.bench.storage import tables

Facts = dict[str, Any]
JUDGE = "tools.bench.storage.judge"
HALVES = ["fp16", "bf16"]
LIMITS = Limits(1800, 12 * 10**9)
LOOSE = "50%"  # drawn inputs have near ties, whose decisions say nothing; the error is judged here


@dataclass(frozen=True)
class Files:
    """The model, what the exact passes make of it, samples for graphopt, and those that judge."""

    model: Path
    base: Path
    given: Path
    judged: Path


def add(commands: Any) -> None:
    """Add the subcommand to the benchmarks' parser."""
    parser = commands.add_parser("storage", help="weights stored in half precision", description=__doc__)
    parser.add_argument("--models", nargs="+", default=options.real_models(), metavar="NAME")
    parser.add_argument("--latency", type=float, default=2, metavar="SECONDS", help="for one measurement")
    options.add_results(parser, "storage")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Store and judge model by model; the JSON file keeps what is not run again."""
    found = running.each(
        chosen.models, chosen, lambda name, _: of_model(name, chosen.work / name, chosen.latency)
    )
    running.publish(tables.page(running.ordered(found, list(models.recipes()))), "storage", chosen)


def of_model(name: str, folder: Path, seconds: float) -> Facts:
    """The facts of each half type of one model.

    Raises:
        JudgeError: its samples cannot be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = Path(ask(JUDGE, {"prepare": name, "folder": str(folder)})["model"])
    files = Files(model, folder / "base.onnx", folder / "given", folder / "judged")
    exact = optimized(model, files.base, "--no-verify")
    if exact["why"]:
        return {half: exact for half in HALVES}
    return {half: stored(files, half, seconds) for half in HALVES}


def optimized(model: Path, result: Path, *arguments: str) -> Facts:
    """Let graphopt optimize a model; weights that callers may override are taken as they are."""
    tail = [str(model), str(result), "--no-measure", "--threads", "1", "--freeze-initializers", *arguments]
    return convert([sys.executable, "-m", "graphopt", "optimize", *tail], [model], result, LIMITS)


def stored(files: Files, half: str, seconds: float) -> Facts:
    """Store the weights as `half`, and judge the result."""
    result = files.base.with_name(f"{half}.onnx")
    arguments = ["--store", half, "--data", str(files.given), "--max-drop", LOOSE]
    facts = optimized(files.model, result, *arguments)
    if facts["why"]:
        return facts
    request = {"base": str(files.base), "result": str(result), "samples": str(files.judged)}
    try:
        return facts | ask(JUDGE, request | {"half": half, "seconds": seconds})
    except JudgeError as error:
        return facts | {"why": str(error)}
