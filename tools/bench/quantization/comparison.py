"""Let every contestant quantize the model of each task, and have the results judged.

Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench import conversion
from tools.bench.asking import ask
from tools.bench.roster import ORIGINAL, Roster, file_name

Facts = dict[str, Any]
JUDGE = "tools.bench.quantization.judge"


@dataclass(frozen=True)
class Plan:
    """How a comparison is run.

    Attributes:
        contestants: who takes part.
        roster: all of them, with their commands.
        peers_python: interpreter with onnxruntime and nncf in which the peers run.
        work: folder for samples and results.
        limit_s: time limit of one quantization.
        limit_bytes: data memory of one quantization, so that a greedy one fails and not the machine.
        seconds: time for one measurement of latency.
        macs: count what is computed in integers.
        reuse: take a peer's result that an earlier run made of the same model and samples.
        judge: the module whose process judges.
        most_samples: to calibrate on.
    """

    contestants: list[str]
    roster: Roster
    peers_python: str
    work: Path
    limit_s: float
    limit_bytes: int
    seconds: float
    reuse: bool
    macs: bool = True
    judge: str = JUDGE
    most_samples: int = 300


def compare(task: str, plan: Plan) -> Facts:
    """All contestants of `plan` on one task.

    Returns:
        What the task is, and under `contestants` the facts of each, with fp32 first.

    Raises:
        JudgeError: its data is not there, or the judge failed.
    """
    folder = plan.work / task
    folder.mkdir(parents=True, exist_ok=True)
    samples = folder / "samples"
    about = ask(plan.judge, {"prepare": task, "samples": str(samples), "most": plan.most_samples})
    quantized = {
        name: quantize(name, Path(about["model"]), samples, folder, plan) for name in plan.contestants
    }
    results = {name: str(folder / file_name(name)) for name, facts in quantized.items() if not facts["why"]}
    request = {
        "task": task,
        "model": about["model"],
        "samples": str(samples),
        "models": results,
        "seconds": plan.seconds,
        "macs": plan.macs,
    }
    judged = ask(plan.judge, request)
    merged = {name: {**facts, **judged.get(name, {})} for name, facts in quantized.items()}
    return {**about, "contestants": {ORIGINAL: judged[ORIGINAL], **merged}}


def quantize(name: str, model: Path, samples: Path, folder: Path, plan: Plan) -> Facts:
    """Let one contestant quantize: seconds, peak memory, size of the result, and why it failed if it did."""
    result = folder / file_name(name)
    command = plan.roster.command(name, model, samples, result, plan.peers_python)
    limits = conversion.Limits(plan.limit_s, plan.limit_bytes)
    sources = [model, *sorted(samples.iterdir())]
    reuse = plan.reuse and name in plan.roster.peers
    return conversion.convert(command, sources, result, limits, reuse=reuse)
