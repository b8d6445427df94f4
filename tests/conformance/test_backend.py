"""onnx.backend.test through the default plan: no case fails that plain ONNX Runtime passes.

No node case has an initializer, so each is run again with a seeded subset of its inputs bound as
initializers: thousands of folding tests with known answers. Plain ONNX Runtime is the base line; what it
cannot run counts as skipped, and the number that ran is asserted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test import loader

import graphopt
from graphopt import registry
from graphopt.errors import WorkerError
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.proof.tolerance import Spread, judge, leaves
from graphopt.runtime.values import Feeds, Tensor, Value
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from tests.support import serialized

CHUNKS = 8
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(memory_limit=4 << 30, time_limit=60) as worker:
        yield worker


@cache
def cases() -> list[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    """Name, model and first inputs of every node case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = loader.load_model_tests(kind="node")
    return [(case.name, case.model, inputs(case)) for case in found if case.data_sets]


def inputs(case: Any) -> dict[str, Any]:
    names = [value.name for value in case.model.graph.input]
    return dict(zip(names, case.data_sets[0][0], strict=False))


def value_of(data: Any) -> Value:
    if data is None:
        return None
    if isinstance(data, list):
        return [value_of(item) for item in data]
    return Tensor.of(numpy_helper.to_array(data) if isinstance(data, onnx.TensorProto) else data)


def bound(proto: onnx.ModelProto, given: dict[str, Any], seed: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A random subset of the tensor inputs (seed 0: all) as initializers, and what is left to feed."""
    rng = np.random.default_rng([seed, len(proto.SerializeToString())])
    names = [v.name for v in proto.graph.input if v.type.HasField("tensor_type") and v.name in given]
    chosen = {name for name in names if seed == 0 or rng.random() < 0.5}
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    del model.graph.input[:]
    model.graph.input.extend(value for value in proto.graph.input if value.name not in chosen)
    model.graph.initializer.extend(initializer(name, given[name]) for name in names if name in chosen)
    return model, {name: data for name, data in given.items() if name not in chosen}


def initializer(name: str, data: Any) -> onnx.TensorProto:
    tensor = onnx.TensorProto()
    tensor.CopyFrom(data if isinstance(data, onnx.TensorProto) else numpy_helper.from_array(np.asarray(data)))
    tensor.name = name
    return tensor


def optimized(proto: onnx.ModelProto, worker: Worker) -> onnx.ModelProto:
    model = Model.of(proto)
    registry.plan()(model, Run(CPU, worker))
    return serialized(model)


def compute(proto: onnx.ModelProto, feeds: Feeds, worker: Worker) -> list[tuple[str, Tensor]]:
    results = worker.evaluate(proto.SerializeToString(), feeds)
    return [leaf for name, value in results.items() for leaf in leaves(name, value)]


def wrong(proto: onnx.ModelProto, given: dict[str, Any], worker: Worker) -> str | None:
    """What differs after optimizing; empty when nothing does, ``None`` when plain ONNX Runtime fails."""
    feeds = {name: value_of(data) for name, data in given.items()}
    try:
        expected = compute(proto, feeds, worker)
    except WorkerError:
        return None
    try:
        found = compute(optimized(proto, worker), feeds, worker)
    except WorkerError as error:
        return f"does not run: {error}"
    if [name for name, _ in expected] != [name for name, _ in found]:
        return "other outputs"
    reasons = [judge(Spread(), old, new).wrong for (_, old), (_, new) in zip(expected, found, strict=True)]
    return next(filter(None, reasons), "")


def is_random(proto: onnx.ModelProto, given: dict[str, Any], worker: Worker) -> bool:
    """Whether two runs of the original differ."""
    feeds = {name: value_of(data) for name, data in given.items()}
    first, second = compute(proto, feeds, worker), compute(proto, feeds, worker)
    return any(judge(Spread(), old, new).wrong for (_, old), (_, new) in zip(first, second, strict=True))


def failures(
    variants: Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]], worker: Worker
) -> tuple[int, list[str]]:
    """How many variants ran, and those that went wrong."""
    ran, bad = 0, []
    for name, proto, given in variants:
        reason = wrong(proto, given, worker)
        ran += reason is not None
        if reason and not is_random(proto, given, worker):
            bad.append(f"{name}: {reason}")
    return ran, bad


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_node_cases(chunk: int, worker: Worker) -> None:
    ran, bad = failures(iter(cases()[chunk::CHUNKS]), worker)
    assert bad == []
    assert ran > 150


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("seed", SEEDS)
def test_node_cases_with_inputs_bound_as_initializers(seed: int, chunk: int, worker: Worker) -> None:
    variants = ((name, *bound(proto, given, seed)) for name, proto, given in cases()[chunk::CHUNKS])
    ran, bad = failures(variants, worker)
    assert bad == []
    assert ran > 150


STORED = sorted(path for path in Path(loader.DATA_DIR).rglob("model.onnx") if "light" not in path.parts)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_stored_models_on_their_own_data(chunk: int) -> None:
    """The simple and pytorch suites, verified by graphopt itself on the test data that comes with them."""
    for path in STORED[chunk::CHUNKS]:
        report = graphopt.optimize(path, data=str(path.parent), measure=False, threads=1).report
        assert report.left_out == [], path
        assert report.evidence != "failed", path
