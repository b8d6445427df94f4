"""What must hold of every model that ran through the bare pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from graphopt import registry
from graphopt.errors import WorkerError
from graphopt.interface import Interface, differences
from graphopt.journal import Journal
from graphopt.model import Model
from graphopt.pipeline import Pipeline, Run
from graphopt.rewrite import SMALL
from graphopt.runtime.values import Tensor, Value
from graphopt.runtime.worker import Worker
from graphopt.target import CPU, REFERENCE
from tools.fuzz import feeds

Array = NDArray[Any]
Results = Mapping[str, Value]
# Bytes by which a tiny file may grow: small constants that rewrites duplicate, and names.
SLACK = 2 * SMALL
# Relative to the largest element of an output, whose rounding the sums inside may amplify.
ROUNDING = {"float16": 3e-2, "float32": 1e-4, "float64": 1e-9}


@dataclass(frozen=True)
class Failure:
    """What does not hold.

    Attributes:
        kind: crash, invalid, interface, growth, unstable, fails, differs.
        detail: one line for people.
    """

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def check(model: onnx.ModelProto, worker: Worker, pipeline: Pipeline | None = None) -> Failure | None:
    """Run a pipeline (the default plan) without verification and look at everything that is promised."""
    pipeline = pipeline or registry.plan()
    try:
        result, journal = optimized(model, worker, pipeline)
    except Exception as error:  # whatever it is, the pipeline must not raise it
        return Failure("crash", f"{type(error).__name__}: {error}")
    if any("hit limit" in note or "still changed" in note for note in journal.notes):
        return Failure("unstable", "; ".join(journal.notes))
    return (
        _contract(model, result) or _second_run(result, worker, pipeline) or _outputs(model, result, worker)
    )


def optimized(model: onnx.ModelProto, worker: Worker, pipeline: Pipeline) -> tuple[onnx.ModelProto, Journal]:
    """The model after the pipeline, as its file says it."""
    held, run = Model.of(model), Run(CPU, worker)
    pipeline(held, run)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        held.save(path)
        return onnx.load(path), run.journal


def _contract(model: onnx.ModelProto, result: onnx.ModelProto) -> Failure | None:
    try:
        onnx.checker.check_model(result)
    except onnx.checker.ValidationError as error:
        return Failure("invalid", str(error).splitlines()[0])
    found = differences(Interface.of(model), Interface.of(result))
    if found:
        return Failure("interface", found[0])
    before, after = model.ByteSize(), result.ByteSize()
    return Failure("growth", f"{before} bytes became {after}") if after > before + SLACK else None


def _second_run(result: onnx.ModelProto, worker: Worker, pipeline: Pipeline) -> Failure | None:
    """It finds nothing to do."""
    again, journal = optimized(result, worker, pipeline)
    if again.SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True):
        return None
    return Failure("unstable", f"a second run rewrites {dict(journal.passes)}")


def _outputs(model: onnx.ModelProto, result: onnx.ModelProto, worker: Worker) -> Failure | None:
    """Same outputs wherever the original has some."""
    samples = [{name: Tensor.of(a) for name, a in feed.items()} for feed in feeds.of_model(model)]
    try:
        expected, again = (_results(model, samples, worker) for _ in range(2))
    except WorkerError:
        return None  # the original cannot even be loaded
    if all(isinstance(result, WorkerError) for result in expected):
        return None
    try:
        found = _results(result, samples, worker)
    except WorkerError as error:
        return Failure("fails", str(error))
    coarsest = max((ROUNDING[kind] for kind in feeds.kinds(model) if kind in ROUNDING), default=0.0)
    for index, (old, same, new) in enumerate(zip(expected, again, found, strict=True)):
        # ONNX Runtime leaves memory uninitialized where it concatenates empty tensors of unlike shapes.
        if not isinstance(old, WorkerError) and _compare(old, same, coarsest) is None:
            failure = _compare(old, new, coarsest)
            if failure is not None:
                return Failure(failure.kind, f"{failure.detail} (sizes {index})")
    return None


def _results(
    model: onnx.ModelProto, samples: list[dict[str, Value]], worker: Worker
) -> list[Results | WorkerError]:
    session = worker.open(model.SerializeToString(), REFERENCE, 1)
    results: list[Results | WorkerError] = []
    for sample in samples:
        try:
            results.append(worker.run(session, sample))
        except WorkerError as error:
            results.append(error)
    worker.close(session)
    return results


def _compare(old: Results, new: Results | WorkerError, rounding: float) -> Failure | None:
    if isinstance(new, WorkerError):
        return Failure("fails", str(new))
    for name, value in old.items():
        other = new[name]
        assert isinstance(value, Tensor) and isinstance(other, Tensor)
        reason = difference(value.numpy(), other.numpy(), rounding)
        if reason:
            return Failure("differs", f"output {name} {reason}")
    return None


def difference(old: Array, new: Array, rounding: float) -> str:
    """How two outputs differ, empty if they do not; the coarsest type inside rounds what a Cast widens."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f"is {new.dtype}{list(new.shape)} instead of {old.dtype}{list(old.shape)}"
    if old.dtype.kind != "f":
        return "" if np.array_equal(old, new) else f"differs in {np.count_nonzero(old != new)} elements"
    a, b = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "differs in NaN or infinities"
    allowed = rounding * np.abs(a[finite]).max(initial=0.0)
    worst = np.abs(a[finite] - b[finite]).max(initial=0.0)
    return "" if worst <= allowed else f"is off by {worst:.3g} where {allowed:.3g} is allowed"
