"""Quantize with min-max ranges, and print the seconds until all statistics of the ranges were gathered.

    python -m tools.bench.quantization.stages model.onnx samples result.onnx

They are those of the stage "calibrating", which graphopt tells to whoever watches its progress: reading the
samples once, running them, and accumulating. What comes before (the exact rewrites and their verification)
and after (placement, fitting, judging) is not in them.
"""

from __future__ import annotations

import sys
import time

import graphopt

STAGE = "calibrating"


class Stopwatch:
    """Progress that takes the time of the first stretch of a stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._start: float | None = None
        self.seconds: float | None = None

    def __call__(self, stage: str, done: int | None = None, total: int | None = None) -> None:
        """See :class:`graphopt.progress.Progress`."""
        if self.seconds is not None:
            return
        if stage == self._stage:
            self._start = time.perf_counter() if self._start is None else self._start
        elif self._start is not None:
            self.seconds = time.perf_counter() - self._start


def main(model: str, samples: str, result: str) -> None:
    """Quantize on one thread."""
    watch = Stopwatch(STAGE)
    graphopt.optimize(
        model, result, precision="int8", data=samples, ranges="minmax", threads=1, progress=watch
    )
    print("-" if watch.seconds is None else f"{watch.seconds:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
