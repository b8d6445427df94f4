"""Let every contestant quantize the model of each task, and have the results judged.

Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.process import measure
from tools.bench.quantization import contestants

Facts = dict[str, Any]


class TaskError(Exception):
    """A task cannot be run here; the message is one line."""


@dataclass(frozen=True)
class Plan:
    """How a comparison is run.

    Attributes:
        contestants: who takes part.
        peers_python: interpreter with onnxruntime and nncf in which the peers run.
        work: folder for samples and results.
        limit_s: time limit of one quantization.
        limit_bytes: data memory of one quantization, so that a greedy one fails and not the machine.
        seconds: time for one measurement of latency.
        reuse: take a peer's result that an earlier run made of the same model and samples.
    """

    contestants: list[str]
    peers_python: str
    work: Path
    limit_s: float
    limit_bytes: int
    seconds: float
    reuse: bool


def compare(task: str, plan: Plan) -> Facts:
    """All contestants of `plan` on one task.

    Returns:
        What the task is, and under `contestants` the facts of each, with fp32 first.

    Raises:
        TaskError: its data is not there, or the judge failed.
    """
    folder = plan.work / task
    folder.mkdir(parents=True, exist_ok=True)
    samples = folder / "samples"
    about = ask({"prepare": task, "samples": str(samples)})
    quantized = {
        name: quantize(name, Path(about["model"]), samples, folder, plan) for name in plan.contestants
    }
    results = {
        name: str(folder / contestants.file_name(name))
        for name, facts in quantized.items()
        if not facts["why"]
    }
    request = {"task": task, "samples": str(samples), "models": results, "seconds": plan.seconds}
    judged = ask(request)
    merged = {name: {**facts, **judged.get(name, {})} for name, facts in quantized.items()}
    return {**about, "contestants": {contestants.ORIGINAL: judged[contestants.ORIGINAL], **merged}}


def quantize(name: str, model: Path, samples: Path, folder: Path, plan: Plan) -> Facts:
    """Let one contestant quantize: seconds, peak memory, size of the result, and why it failed if it did."""
    result = folder / contestants.file_name(name)
    record = result.with_suffix(".json")
    mark = fingerprint([model, *sorted(samples.iterdir())])
    if plan.reuse and name in contestants.PEERS and record.exists():
        facts: Facts = json.loads(record.read_text())
        if facts["mark"] == mark:
            return facts
    result.unlink(missing_ok=True)
    command = contestants.command(name, model, samples, result, plan.peers_python)
    limited = ["prlimit", f"--data={plan.limit_bytes}:", *command]
    usage = measure(limited, plan.limit_s, contestants.environment())
    failed = usage.exit_code != 0 or not result.exists()
    facts = {
        "seconds": usage.seconds,
        "peak_bytes": usage.peak_bytes,
        "why": f"exit {usage.exit_code}: {usage.message}" if failed else "",
        "bytes": 0 if failed else result.stat().st_size,
        "mark": mark,
    }
    record.write_text(json.dumps(facts))
    return facts


def fingerprint(files: list[Path]) -> str:
    """SHA-256 over the contents of files."""
    digest = hashlib.sha256()
    for content in blocks(files):
        digest.update(content)
    return digest.hexdigest()


def blocks(files: list[Path]) -> Iterator[bytes]:
    """Contents of files, in blocks of a megabyte, so that this process stays small."""
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                yield block


def ask(request: Facts) -> Facts:
    """Answer of the judge, who needs numpy, which would count as memory of the contestants here.

    Raises:
        TaskError: with the last line that it printed.
    """
    command = [sys.executable, "-m", "tools.bench.quantization.judge"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        raise TaskError((done.stderr.strip() or "no message").splitlines()[-1][:300])
    answer: Facts = json.loads(done.stdout)
    return answer
