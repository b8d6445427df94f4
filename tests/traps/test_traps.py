"""Every trap through ``optimize`` and through the bare pipeline: verification must not be what saves us."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import registry
from graphopt.interface import Interface, differences
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from tests.support import compute, serialized
from tests.traps import kit
from tests.traps.kit import Trap

for _theme in (
    "names",
    "interface",
    "folding",
    "fusion",
    "movement",
    "identities",
    "datatypes",
    "control_flow",
    "functions",
    "randomness",
    "growth",
    "quantization",
):
    __import__(f"tests.traps.{_theme}")


SLACK = 64  # bytes of names and attributes by which a tiny file may grow


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(memory_limit=4 << 30, time_limit=60) as worker:
        yield worker


@cache
def built(name: str) -> tuple[Trap, list[list[object]]]:
    """A trap and what its own model gives for its feeds."""
    found = kit.make(name)
    return found, [compute(found.model, feeds) for feeds in found.feeds]


def piped(proto: onnx.ModelProto, worker: Worker) -> onnx.ModelProto:
    """The model after the default plan, unverified."""
    model = Model.of(proto)
    registry.plan()(model, Run(CPU, worker))
    return serialized(model)


@pytest.mark.parametrize("name", kit.names())
def test_pipeline_without_verification(name: str, worker: Worker) -> None:
    trap, expected = built(name)
    before = trap.model.SerializeToString()
    result = piped(trap.model, worker)
    assert trap.model.SerializeToString() == before, "the input was changed"
    assert_holds(trap, result, expected)
    again = piped(result, worker)
    assert again.SerializeToString() == result.SerializeToString(), "a second run changes something"


@pytest.mark.parametrize("name", kit.names())
def test_optimize(name: str) -> None:
    trap, expected = built(name)
    found = graphopt.optimize(trap.model, measure=False, threads=1, memory_limit=4 << 30)
    assert found.report.left_out == []
    assert_holds(trap, serialized(found.model), expected)


def assert_holds(trap: Trap, result: onnx.ModelProto, expected: list[list[object]]) -> None:
    if is_valid(trap.model):
        onnx.checker.check_model(result)
    before, after = Interface.of(trap.model), Interface.of(result)
    frozen = before.overridable - {port.name for port in after.inputs} if trap.lists_constants else ()
    assert differences(before, after, frozen) == []
    assert trap.lists_constants or after.ir_version == before.ir_version
    assert after.opset_imports == before.opset_imports
    assert len(result.SerializeToString()) <= len(trap.model.SerializeToString()) + SLACK, (
        "the file has grown"
    )
    counts = kit.operators(result)
    assert {op: counts[op] for op, least in trap.keeps.items() if counts[op] < least} == {}
    for feeds, outputs in zip(trap.feeds, expected, strict=True):
        for old, new in zip(outputs, compute(result, feeds), strict=True):
            assert_same(old, new, trap)


def is_valid(proto: onnx.ModelProto) -> bool:
    """Whether the checker of onnx accepts a model; ONNX Runtime accepts more."""
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError:
        return False
    return True


def assert_same(old: object, new: object, trap: Trap) -> None:
    assert type(new) is type(old)
    if isinstance(old, list) and isinstance(new, list):
        assert len(new) == len(old)
        for a, b in zip(old, new, strict=True):
            assert_same(a, b, trap)
    elif isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        if not trap.random:
            assert_equal(old, new, trap.rtol)
    else:
        assert new == old


def assert_equal(old: np.ndarray, new: np.ndarray, rtol: float) -> None:
    if old.dtype.kind != "f":
        np.testing.assert_array_equal(new, old)
        return
    finite = np.isfinite(old)
    scale = float(np.abs(old[finite]).max(initial=0.0))
    np.testing.assert_allclose(new, old, rtol=0, atol=rtol * scale)
    if rtol == 0:
        np.testing.assert_array_equal(np.signbit(new[finite]), np.signbit(old[finite]))
