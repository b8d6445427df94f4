"""Compare graphopt with onnxsim, OnnxSlim, onnxscript and ORT-basic, model by model."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools import models
from tools.bench import contestants
from tools.bench.process import Usage, measure

Comparisons = dict[str, "dict[str, Entry]"]  # by model, then by tool


@dataclass
class Entry:
    """What one contestant made of one model; times in seconds, sizes in bytes."""

    seconds: float
    peak_bytes: int
    valid: bool = False
    why: str = ""
    nodes: int | None = None
    bytes: int | None = None
    new_domains: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)
    error: float | None = None
    latency: float | None = None
    latency_ratio: float | None = None


@dataclass(frozen=True)
class Plan:
    """How a comparison is run."""

    tools: list[str]
    peers_python: str
    repeat: int
    limit_s: float
    latency_s: float


def compare(name: str, plan: Plan) -> dict[str, Entry]:
    """All contestants of `plan` on the model `name`, with the original as the entry `original`."""
    source = models.path(name)
    inputs = models.recipes()[name]
    shapes = [inputs.shapes, inputs.shapes | inputs.varied]
    request = {"shapes": shapes, "ranges": inputs.ranges, "values": inputs.values}
    with tempfile.TemporaryDirectory() as scratch:
        results = {tool: Path(scratch, tool, f"{name}.onnx") for tool in plan.tools}
        entries = optimize(source, results, plan)
        original = Path(scratch, "original", f"{name}.onnx")
        original.parent.mkdir()
        shutil.copyfile(source, original)
        entries = {"original": Entry(0.0, 0), **entries}
        results = {"original": original, **results}
        for tool, entry in entries.items():
            if not entry.why:
                judge(entry, {**request, "original": str(source), "result": str(results[tool])})
        files = {
            tool: str(results[tool]) for tool, entry in entries.items() if entry.valid or tool == "original"
        }
        time_runs(entries, {**request, "files": files, "seconds": plan.latency_s, "rounds": 5})
    return entries


def optimize(source: Path, results: dict[str, Path], plan: Plan) -> dict[str, Entry]:
    """Let each contestant optimize `source`, taking turns; medians over the repetitions."""
    runs: dict[str, list[Usage]] = {tool: [] for tool in results}
    for _ in range(plan.repeat):
        for tool, result in results.items():
            result.parent.mkdir(exist_ok=True)
            result.unlink(missing_ok=True)
            command = contestants.command(tool, str(source), str(result), plan.peers_python)
            runs[tool].append(measure(command, plan.limit_s))
    return {tool: summary(runs[tool], results[tool]) for tool in results}


def summary(runs: list[Usage], result: Path) -> Entry:
    """Entry with the medians of `runs`, and the reason if the last one failed."""
    seconds = statistics.median(run.seconds for run in runs)
    peak = statistics.median(run.peak_bytes for run in runs)
    last = runs[-1]
    failed = last.exit_code != 0 or not result.exists()
    return Entry(seconds, int(peak), why=f"exit {last.exit_code}: {last.message}" if failed else "")


def judge(entry: Entry, request: dict[str, Any]) -> None:
    """Fill `entry` with the verdict on its result."""
    answer = ask(request)
    for key in ("nodes", "operators", "new_domains", "bytes", "remarks", "error"):
        setattr(entry, key, answer.get(key, getattr(entry, key)))
    reasons = [*answer.get("contract", []), *[f"new domain {name}" for name in entry.new_domains]]
    if not answer.get("equal"):
        reasons.append(answer.get("failure") or f"outputs differ by {entry.error:.1e} of their scale")
    entry.valid, entry.why = not reasons, "; ".join(reasons)


def time_runs(entries: dict[str, Entry], request: dict[str, Any]) -> None:
    """Measure the valid results against the original, in one process."""
    taken = ask(request)
    for tool, seconds in taken.items():
        if tool in entries:
            entries[tool].latency = seconds
            entries[tool].latency_ratio = seconds / taken["original"]


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Answer of the judge, who works in a process of its own because ONNX Runtime may die on a bad graph."""
    command = [sys.executable, "-m", "tools.bench.judge"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return {"failure": f"the judge ended with {done.returncode}: {last[:200]}"}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def save(comparisons: Comparisons, file: Path) -> None:
    """Write everything that was measured as JSON."""
    plain = {
        name: {tool: asdict(entry) for tool, entry in tools.items()} for name, tools in comparisons.items()
    }
    file.write_text(json.dumps(plain, indent=1))
