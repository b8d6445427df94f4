"""Judge models with weights stored in half precision: `python -m tools.bench.storage.judge`.

Reads a request from standard input, prints the facts as JSON. A result is compared with what the
exact passes alone make: bytes of weights, latency in turns, and the error beside that of rounding all.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.proof import measure
from graphopt.proof.accuracy import Tally
from graphopt.runtime.worker import Worker
from graphopt.target import REFERENCE
from tools.bench.material import Material
from tools.bench.quantization import quality, samples
from tools.bench.storage import oracle

Facts = dict[str, Any]
GIVEN, JUDGED = 8, 4


def prepare(request: Facts) -> Facts:
    """Write the samples that graphopt gets, and those that judge; tell where the model is."""
    material, folder = Material(request["prepare"]), Path(request["folder"])
    samples.write(material.calibration(GIVEN), folder / "given")
    samples.write(material.judged(JUDGED), folder / "judged")
    return {"model": str(material.model())}


def judge(request: Facts) -> Facts:
    """Bytes, latency and error of a result."""
    base, result, folder = (Path(request[key]) for key in ("base", "result", "samples"))
    facts: Facts = {"before": oracle.float_bytes(base), "after": oracle.float_bytes(result)}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            rounded = Path(scratch, "rounded.onnx")
            oracle.write_rounded(base, rounded, request["half"])
            facts |= {"sqnr": sqnr(base, result, folder), "allowed": sqnr(base, rounded, folder)}
        return facts | latency(base, result, folder, request["seconds"])
    except GraphoptError as error:
        return facts | {"why": f"does not run: {error}"[:200]}


def sqnr(original: Path, result: Path, folder: Path) -> float | None:
    """SQNR of the outputs on all samples in dB, nothing optimized; None if no output is floating."""
    tally = Tally()
    with Worker() as worker:
        sessions = [worker.open(path, REFERENCE, quality.THREADS) for path in (original, result)]
        for sample in samples.read(folder):
            feeds = quality.tensors(sample)
            expected, found = (worker.run(session, feeds) for session in sessions)
            tally.add(expected, found)
    return tally.score().sqnr_db


def latency(base: Path, result: Path, folder: Path, seconds: float) -> Facts:
    """How many times faster the result is, in turns on one thread, and times to load in seconds."""
    feeds = quality.tensors(next(samples.read(folder)))
    with Worker() as worker:
        found = measure.compare(base, result, feeds, worker=worker, threads=quality.THREADS, budget_s=seconds)
    return {
        "ratio": found.ratio,
        "noise": found.noise,
        "verdict": found.verdict,
        "load_before": found.before.load_s,
        "load_after": found.after.load_s,
    }


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    json.dump(prepare(request) if "prepare" in request else judge(request), sys.stdout)


if __name__ == "__main__":
    main()
