"""Judge the quantized models of one task against fp32: `python -m tools.bench.quantization.judge`.

Reads {"task", "model", "samples", "models": {contestant: path}, "seconds", "macs"} from standard input,
prints {contestant: facts} with the model itself as the contestant `fp32`. Without "macs", integer arithmetic
is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.proof import measure
from graphopt.runtime.worker import Worker
from tools.bench.quantization import macs, quality, samples, tasks
from tools.bench.quantization.task import Example, Prediction, Task
from tools.bench.roster import ORIGINAL

Facts = dict[str, Any]


def judge(request: dict[str, Any]) -> dict[str, Facts]:
    """Quality, latency and share of integer arithmetic of each model of the request."""
    task = tasks.load(request["task"])
    examples, source = task.examples(), Path(request["model"])
    reference = quality.predictions(source, task, examples)
    facts: dict[str, Facts] = {ORIGINAL: rated(task, examples, reference, reference)}
    folder = Path(request["samples"])
    original = executed(source, folder, "--plain") if request["macs"] else {}
    for name, model in request["models"].items():
        try:
            found = quality.predictions(Path(model), task, examples)
            facts[name] = rated(task, examples, reference, found)
            facts[name]["speed"] = speeds(task, source, Path(model), request["seconds"])
            if request["macs"]:
                facts[name]["integer_macs"] = macs.integer_share(executed(Path(model), folder), original)
        except (GraphoptError, ValueError) as error:  # ValueError: outputs of another shape
            facts[name] = {"why": f"does not run: {error}"[:200]}
    return facts


def rated(task: Task, examples: list[Example], reference: list[Prediction], found: list[Prediction]) -> Facts:
    """The metric where the task has one, agreement and SQNR; both are left out for fp32 itself."""
    facts: Facts = {"metric": task.score(found, examples)} if task.metric else {}
    if found is not reference:
        facts |= {"agreement": task.agreement(reference, found), "sqnr": quality.sqnr(reference, found)}
    return facts


def executed(model: Path, folder: Path, *options: str) -> dict[str, int]:
    """Multiply-accumulates by node type, counted in a process of its own on the first sample."""
    sample = min(folder.glob("*.npz"))
    command = [sys.executable, "-m", "tools.bench.quantization.macs", str(model), str(sample), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip() or "no message").splitlines()[-1])
    found: dict[str, int] = json.loads(done.stdout)
    return found


def speeds(task: Task, source: Path, model: Path, seconds: float) -> dict[str, Facts]:
    """How many times faster than fp32 the model is at each workload, measured in turns on one thread."""
    found: dict[str, Facts] = {}
    with Worker() as worker:
        for name, feeds in task.workloads().items():
            compared = measure.compare(
                source,
                model,
                quality.tensors(feeds),
                worker=worker,
                threads=quality.THREADS,
                budget_s=seconds,
            )
            found[name] = {
                "ratio": compared.ratio,
                "noise": compared.noise,
                "verdict": compared.verdict,
                "fp32_ms": compared.before_ms,
                "ms": compared.after_ms,
            }
    return found


def prepare(request: dict[str, Any]) -> Facts:
    """Write calibration samples, `most` or all, into the folder `samples`; tell where the model is."""
    task = tasks.load(request["prepare"])
    calibration = task.calibration()[: request.get("most")]
    samples.write(calibration, Path(request["samples"]))
    about = {
        "kind": task.kind,
        "metric": task.metric,
        "lower_is_better": task.lower_is_better,
        "agreement_is": task.agreement_is,
    }
    return {"model": str(task.model()), "calibration": len(calibration), **about}


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    json.dump(prepare(request) if "prepare" in request else judge(request), sys.stdout)


if __name__ == "__main__":
    main()
