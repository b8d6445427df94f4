"""Command line: `python -m tools.fuzz --seed 0 --count 200`, `python -m tools.fuzz reduce model.onnx`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx

from graphopt.runtime.worker import Worker
from tools.fuzz.check import check
from tools.fuzz.generate import generate
from tools.fuzz.reduce import reduced


def main(arguments: Sequence[str] | None = None) -> int:
    """Check models of consecutive seeds, or reduce a failing one; 1 if there was a failure."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    with Worker(memory_limit=4 << 30, time_limit=30) as worker:
        return _reduce(given[1:], worker) if given[:1] == ["reduce"] else _fuzz(given, worker)


def _fuzz(arguments: Sequence[str], worker: Worker) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first model")
    parser.add_argument("--count", type=int, default=200, help="of models")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write failing models there")
    options = parser.parse_args(arguments)
    failures = 0
    for seed in range(options.seed, options.seed + options.count):
        model = generate(seed, worker)
        failure = check(model, worker)
        if failure is None:
            continue
        failures += 1
        print(f"seed {seed}: {failure}", flush=True)
        if options.save:
            options.save.mkdir(parents=True, exist_ok=True)
            onnx.save(model, options.save / f"{seed}.onnx")
    print(f"{failures} of {options.count} models fail")
    return int(failures > 0)


def _reduce(arguments: Sequence[str], worker: Worker) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz reduce", description="Shrink a failing model as long as it fails alike."
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path, help="where to write it; MODEL.reduced.onnx by default")
    options = parser.parse_args(arguments)
    model = onnx.load(options.model)
    failure = check(model, worker)
    if failure is None:
        print("the model does not fail")
        return 0
    result = reduced(model, lambda smaller: _fails_alike(smaller, failure.kind, worker))
    onnx.save(result, options.output or options.model.with_suffix(".reduced.onnx"))
    print(onnx.printer.to_text(result), check(result, worker), sep="\n\n")
    return 1


def _fails_alike(model: onnx.ModelProto, kind: str, worker: Worker) -> bool:
    failure = check(model, worker)
    return failure is not None and failure.kind == kind


if __name__ == "__main__":
    sys.exit(main())
