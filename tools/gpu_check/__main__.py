"""Convert every model to half precision for a GPU, and compare output and latency with fp32 on it.

python -m tools.gpu_check                  # needs onnxruntime-gpu and a device
python -m tools.gpu_check --measured       # of what is slower in half precision, the original
python -m tools.gpu_check --provider cpu   # a dry run: converted for CUDA, run on the CPU

Exit codes: 0 all results are right and, if measured, none is slower; 1 some are not, and the table names
them; 3 the provider or its device is not there, and nothing was checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from graphopt.runtime.probe import missing
from graphopt.runtime.worker import Worker
from graphopt.target import Target
from tools import models
from tools.bench import options
from tools.gpu_check import check
from tools.gpu_check.table import table

ALL_RIGHT, SOME_WRONG, NO_DEVICE = 0, 1, 3
TYPES = ["fp16", "bf16"]  # the CPU has no kernels for the latter


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--provider", choices=["cuda", "tensorrt", "cpu"], default="cuda")
    parser.add_argument("--models", nargs="+", default=options.real_models(), metavar="NAME")
    parser.add_argument("--types", nargs="+", choices=TYPES, help="default: all; fp16 in a dry run")
    parser.add_argument(
        "--measured", action="store_true", help="keep half precision only where it pays, as users would"
    )
    parser.add_argument("--latency", type=float, default=2, metavar="SECONDS", help="for one measurement")
    parser.add_argument(
        "--work", type=options.absolute, default=models.cache_folder() / "gpu", metavar="FOLDER"
    )
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE")
    return run(parser.parse_args())


def run(chosen: argparse.Namespace) -> int:
    """Check model by model, print the table, write the JSON file as it goes."""
    target = Target.named(chosen.provider)
    with Worker() as worker:
        reason = missing(worker, target)
    if reason:
        print(f"nothing checked, '{chosen.provider}' does not run here: {reason}", file=sys.stderr)
        return NO_DEVICE
    place = check.Place(
        "cuda" if chosen.provider == "cpu" else chosen.provider,
        target,
        chosen.work,
        chosen.latency,
        chosen.measured,
    )
    found: dict[tuple[str, str], check.Facts] = {}
    for name in chosen.models:
        for half in chosen.types or (TYPES[:1] if place.is_dry else TYPES):
            print(name, half, file=sys.stderr)
            try:
                found[name, half] = check.check(name, half, place)
            except models.FetchError as error:
                found[name, half] = {"why": f"not fetched: {error}"}
            plain = {" ".join(key): facts for key, facts in found.items()}
            chosen.json.write_text(json.dumps(plain, indent=1))
    print(table(found))
    return SOME_WRONG if any(facts["why"] for facts in found.values()) else ALL_RIGHT


if __name__ == "__main__":
    sys.exit(main())
