"""Convert one model to half precision for a GPU, and compare it there with the original."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.proof import measure
from graphopt.runtime.worker import Worker
from graphopt.target import CPU, REFERENCE, Target
from tools import models
from tools.bench.conversion import Limits, convert
from tools.bench.half import structure
from tools.bench.half.judge import compared
from tools.bench.half.rounding import write_rounded
from tools.bench.material import Material
from tools.bench.quantization import quality, samples

Facts = dict[str, Any]
LEAST_DB = 20.0  # as the budget of `--precision` asks of outputs without decisions
CALIBRATION, JUDGED = 8, 6
LIMITS = Limits(1800, 64 * 10**9)


@dataclass(frozen=True)
class Place:
    """Where to check.

    Attributes:
        converted_for: `--target` of the conversion.
        runs_on: where the original and the result run; the CPU in a dry run.
        work: folder for samples and results.
        seconds: time for one measurement of latency.
        measured: whether only what pays is to be half; else all that keeps the budget.
    """

    converted_for: str
    runs_on: Target
    work: Path
    seconds: float
    measured: bool = False

    @property
    def is_dry(self) -> bool:
        """Whether results for GPUs run on the CPU, where half precision is slower."""
        return self.runs_on == CPU


def check(name: str, half: str, place: Place) -> Facts:
    """The facts of one model in one type; `why` says what is wrong, and is empty if nothing is.

    Raises:
        FetchError: the model cannot be had.
    """
    folder = place.work / name
    material = Material(name)
    model, result = material.model(), folder / f"{half}.onnx"
    samples.write(material.calibration(CALIBRATION), folder / "calibration")
    arguments = ["--precision", half, "--target", place.converted_for, "--data", str(folder / "calibration")]
    arguments += [] if place.measured else ["--no-measure"]
    command = [sys.executable, "-m", "graphopt", "optimize", str(model), str(result), *arguments]
    report = folder / f"{half}-report.json"
    report.unlink(missing_ok=True)
    facts = convert([*command, "--report", str(report)], [model], result, LIMITS)
    facts["told"] = told(report)
    if facts["why"]:
        return facts
    try:
        facts |= {"half": structure.half_share(result, models.recipes()[name].shapes)}
        facts |= parity(material, result, place) | latency(material, result, place)
    except GraphoptError as error:
        return facts | {"why": f"does not run: {error}"[:200]}
    return facts | {"why": wrong(facts, place)}


def told(report: Path) -> str:
    """Why half precision was not achieved, as the report has it; empty if it was."""
    notes = json.loads(report.read_text())["notes"] if report.exists() else []
    return next((note for note in notes if "not achieved" in note), "")


def wrong(facts: Facts, place: Place) -> str:
    """What is wrong with a result that runs; empty if nothing is."""
    if not facts["finite"]:
        return "NaN, Inf or zeros where the original has none"
    if facts["sqnr"] is not None and facts["sqnr"] < LEAST_DB:
        return f"SQNR below {LEAST_DB:.0f} dB"
    is_wrong = facts["verdict"] == "slower" and place.measured and not place.is_dry
    return "slower than the original" if is_wrong else ""


def parity(material: Material, result: Path, place: Place) -> Facts:
    """The result on the device beside the original there; and the original there beside the CPU.

    In a dry run every half value of the result is rounded, which the CPU would not do.
    """
    with Worker() as worker:
        there = worker.open(material.model(), place.runs_on)
        reference = worker.open(material.model(), REFERENCE)
        found = worker.open(result, place.runs_on)
        if place.is_dry:
            write_rounded(result, rounded := worker.folder / "rounded.onnx")
            found = worker.open(rounded, REFERENCE)
        inputs = [quality.tensors(one) for one in material.judged(JUDGED)]
        expected = [worker.run(there, one) for one in inputs]
        on_cpu = [worker.run(reference, one) for one in inputs]
        facts = compared(zip(expected, (worker.run(found, one) for one in inputs), strict=True))
        return facts | {"fp32_sqnr": compared(zip(on_cpu, expected, strict=True))["sqnr"]}


def latency(material: Material, result: Path, place: Place) -> Facts:
    """Milliseconds per run of both, in turns, and how many times faster the result is."""
    feeds = quality.tensors(next(material.judged(JUDGED)))
    with Worker() as worker:
        found = measure.compare(
            material.model(), result, feeds, worker=worker, target=place.runs_on, budget_s=place.seconds
        )
    return {
        "fp32_ms": found.before_ms,
        "ms": found.after_ms,
        "ratio": found.ratio,
        "noise": found.noise,
        "verdict": found.verdict,
    }
