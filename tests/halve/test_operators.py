"""onnx's own node tests in half: what was valid and loaded still is and does, and computes nearly the same.

Two cases of each operator, since all of them take minutes.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test import loader

from graphopt.runtime.worker import Worker
from tests.halve.support import FLOAT16, assert_near, converted
from tests.support import compute

CHUNKS = 4
OF_EACH = 2
# Twice the rounding of a sum of a few halves, relative to the largest element.
ROUNDING = 1e-2
LEAST = 30  # outputs of nodes in half that are compared, in each chunk


@cache
def cases() -> list[tuple[str, onnx.ModelProto, list[Any]]]:
    """Name, model and first inputs of every node case that ONNX Runtime runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = loader.load_model_tests(kind="node")
    chosen, seen = [], Counter[str]()
    for case in found:
        operator = case.model.graph.node[0].op_type if case.data_sets else ""
        seen[operator] += 1
        if case.data_sets and seen[operator] <= OF_EACH:
            chosen.append((case.name, case.model, case.data_sets[0][0]))
    return chosen


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_float16(chunk: int, worker: Worker) -> None:
    """With half inputs and outputs, so that even a single cheap node is half."""
    compared = 0
    for name, proto, inputs in cases()[chunk::CHUNKS]:
        converted(proto, worker)
        after, found = converted(proto, worker, keep_io=False)
        halves = {value.name: value.type.tensor_type.elem_type == FLOAT16 for value in after.graph.input}
        names = [value.name for value in proto.graph.input]
        feeds = {key: read(data) for key, data in zip(names, inputs, strict=False)}
        rounded = {key: x.astype(np.float16) if halves[key] else x for key, x in feeds.items()}
        expected = ran(proto, {key: as_float(x, feeds[key]) for key, x in rounded.items()})
        if expected is None:
            continue
        for old, new in zip(expected, compute(after, rounded), strict=True):
            assert_near(old, as_float(new, old), ROUNDING, name)
            compared += bool(found.nodes)
    assert compared >= LEAST


def read(data: Any) -> Any:
    if isinstance(data, onnx.TensorProto):
        return numpy_helper.to_array(data)
    return data if data is None or isinstance(data, list) else np.asarray(data)


def as_float(output: Any, like: Any) -> Any:
    """A half output, or input, as the type that the original has."""
    is_half = isinstance(output, np.ndarray) and output.dtype == np.float16
    return output.astype(like.dtype) if is_half else output


def ran(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any] | None:
    """The outputs; None if ONNX Runtime does not run the model as it is, or not twice the same."""
    try:
        expected, again = compute(proto, feeds), compute(proto, feeds)
    except Exception:
        return None
    pairs = [pair for pair in zip(expected, again, strict=True) if is_floating(pair[0])]
    return expected if all(np.array_equal(*pair, equal_nan=True) for pair in pairs) else None


def is_floating(output: Any) -> bool:
    return isinstance(output, np.ndarray) and output.dtype.kind == "f"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_bfloat16(chunk: int, worker: Worker) -> None:
    for _, proto, _ in cases()[chunk::CHUNKS]:
        for keep_io in (True, False):
            converted(proto, worker, "bfloat16", keep_io=keep_io)
