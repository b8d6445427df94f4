"""How good a quantized model is: its metric, its agreement with fp32, and its signal-to-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from graphopt.runtime.values import Tensor
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from tools.bench.quantization.task import Array, Example, Feeds, Prediction, Run, Task

THREADS = 1


def predictions(model: Path, task: Task, examples: Sequence[Example]) -> list[Prediction]:
    """What the model makes of the examples."""
    with opened(model) as run:
        return [task.predict(run, example) for example in examples]


@contextmanager
def opened(model: Path | bytes) -> Iterator[Run]:
    """Runs of the model in a process of its own, whose end frees what it spilled."""
    with Worker() as worker:
        session = worker.open(model, CPU, THREADS)

        def run(feeds: Feeds) -> list[Array]:
            outputs = worker.run(session, tensors(feeds))
            return [value.numpy() for value in outputs.values() if isinstance(value, Tensor)]

        yield run


def tensors(feeds: Feeds) -> dict[str, Tensor]:
    """Arrays as the worker takes them."""
    return {name: Tensor.of(array) for name, array in feeds.items()}


def sqnr(reference: Sequence[Prediction], found: Sequence[Prediction]) -> float | None:
    """Signal-to-quantization-noise ratio in dB over all float outputs; None where a task has none."""
    pairs = [(a.values, b.values) for a, b in zip(reference, found, strict=True)]
    signal = noise = 0.0
    for expected, value in pairs:
        if expected is None or value is None:
            return None
        signal += float(np.square(expected, dtype=np.float64).sum())
        noise += float(np.square(expected.astype(np.float64) - value).sum())
    return 10 * math.log10(signal / noise) if noise and signal else math.inf
