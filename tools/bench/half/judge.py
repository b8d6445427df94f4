"""Judge converted models against their originals: `python -m tools.bench.half.judge`.

Reads a request from standard input, prints the facts as JSON. Runs are on the CPU with nothing optimized, and
with every half value rounded, see `rounding`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.proof.accuracy import Score, Tally
from graphopt.proof.tolerance import leaves
from graphopt.runtime.values import FLOATING, Tensor, Value
from graphopt.runtime.worker import Worker
from graphopt.target import CPU, REFERENCE
from tools.bench.half import structure
from tools.bench.half.rounding import write_rounded
from tools.bench.material import Material
from tools.bench.quantization import quality, samples

Facts = dict[str, Any]
Outputs = dict[str, Value]
CALIBRATION, JUDGED = 8, 10
LONGEST = 200


def prepare(request: Facts) -> Facts:
    """Write the samples that calibrate, and those that judge; tell where the model is, and if it is valid."""
    material, folder = Material(request["prepare"]), Path(request["folder"])
    samples.write(material.calibration(CALIBRATION), folder / "samples")
    samples.write(material.judged(JUDGED), folder / "judged")
    return {"model": str(material.model()), "invalid": structure.invalid(material.model())}


def judge(request: Facts) -> Facts:
    """The facts of one result; `why` says what is wrong with it."""
    original, result = Path(request["original"]), Path(request["result"])
    facts: Facts = {
        "invalid": structure.invalid(result),
        "casts": structure.casts(result) - structure.casts(original),
        "half": structure.half_share(result, request["dims"]),
    }
    return facts | run(original, result, Path(request["judged"]))


def run(original: Path, result: Path, folder: Path) -> Facts:
    """Whether a result loads and runs, and how near its outputs are to the original's."""
    with Worker(time_limit=300) as worker, worker.fresh() as other, tempfile.TemporaryDirectory() as scratch:
        try:
            with other.opened(result, CPU, quality.THREADS):
                pass  # as a user opens it
            write_rounded(result, rounded := Path(scratch, "rounded.onnx"))
            with (
                other.opened(rounded, REFERENCE, quality.THREADS) as found,
                worker.opened(original, REFERENCE, quality.THREADS) as expected,
            ):
                feeds = (quality.tensors(sample) for sample in samples.read(folder))
                pairs = ((worker.run(expected, one), other.run(found, one)) for one in feeds)
                return {"loads": True, "why": "", **compared(pairs)}
        except GraphoptError as error:
            return {"loads": False, "why": f"does not run: {error}"[:LONGEST]}


def compared(pairs: Iterable[tuple[Outputs, Outputs]]) -> Facts:
    """Finite where the original is, not all zero where it is not, and the score."""
    tally, finite = Tally(), True
    for expected, found in pairs:
        tally.add(expected, found)
        finite = finite and all(sound(value, found.get(name)) for name, value in expected.items())
    return {"finite": finite, **scored(tally.score())}


def scored(score: Score) -> Facts:
    """SQNR in dB, and percentage of equal decisions, where there are any."""
    agreement = None if score.agreement is None else 100 * score.agreement
    return {"sqnr": score.sqnr_db, "agreement": agreement}


def sound(expected: Value, found: Value) -> bool:
    """Whether the floats of an output are finite, and not all zero, wherever the original's are not."""
    other = dict(leaves("", found))
    return all(sound_tensor(tensor, other.get(name)) for name, tensor in leaves("", expected))


def sound_tensor(expected: Tensor, found: Tensor | None) -> bool:
    """The same for one tensor; another shape is not sound."""
    if found is None or found.shape != expected.shape:
        return False
    if expected.elem_type not in FLOATING or found.elem_type not in FLOATING:
        return True
    reference, other = expected.numpy(), found.numpy()
    vanished = bool(np.any(reference)) and not np.any(other)
    return bool(np.isfinite(other)[np.isfinite(reference)].all()) and not vanished


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    json.dump(prepare(request) if "prepare" in request else judge(request), sys.stdout)


if __name__ == "__main__":
    main()
