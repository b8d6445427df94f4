"""Biases that take back the mean errors of all layers before: sequential, and only where there is a bias."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt import graph as g
from graphopt.activations import Collector
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.precision import Task
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.calibrate import find_ranges
from graphopt_passes.quantize.draft import Drafts
from graphopt_passes.quantize.placement import Placement
from graphopt_passes.quantize.ranges import Form
from graphopt_passes.quantize.sequential import corrected
from tests.support import compute, parse, serialized

# A ladder of Convs with coarse grids: each makes the errors of those before larger.
TEXT = """g (float[n,4,6,6] x, float[8,4,3,3] u, float[8] a, float[8,8,3,3] v, float[8] b, float[8,8,3,3] w)
=> (float[n,8,6,6] y) {
p = Conv<pads = [1,1,1,1]>(x, u, a)  q = Relu(p)
r = Conv<pads = [1,1,1,1]>(q, v, b)  s = Relu(r)
y = Conv<pads = [1,1,1,1]>(s, w) }"""
NODES = ("p", "r", "y")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(time_limit=60) as one:
        yield one


def build(seed: int) -> onnx.ModelProto:
    rng, proto = np.random.default_rng(seed), parse(TEXT)
    for value in proto.graph.input[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        data = rng.standard_normal(shape).astype(np.float32) + np.float32(0.2)
        proto.graph.initializer.append(numpy_helper.from_array(data, value.name))
    del proto.graph.input[1:]
    return proto


def samples(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.exponential(1.0, (1, 4, 6, 6)).astype(np.float32)} for _ in range(16)]


def drafts_of(proto: onnx.ModelProto, worker: Worker, bits: int) -> tuple[Drafts, Collector]:
    model, collector = Model.of(proto), Collector(worker, threads=1)

    def new_run() -> Run:
        return Run(CPU, worker)

    options = SimpleNamespace(target="cpu")
    task = cast(Task, SimpleNamespace(new_run=new_run, worker=worker, options=options, target=CPU))
    placement = Placement(model, new_run())
    values = placement.on_grids(placement.parts)
    values += [v for part in placement.parts.values() for v in part.outputs]
    forms = {value.name or "": Form(False, False) for value in values}
    ranges = find_ranges(model, forms, lambda wanted: collector.collect(model, wanted, samples(1)), "minmax")
    return Drafts(task, model, ranges.found, bits), collector


def mean_error(proto: onnx.ModelProto, drafts: Drafts, feeds: list[dict[str, Any]]) -> float:
    """The largest error of the mean of an output channel, in standard deviations of the output."""
    changed = serialized(drafts.build(NODES).model)
    found = np.concatenate([compute(changed, one)[0] for one in feeds])
    expected = np.concatenate([compute(proto, one)[0] for one in feeds])
    return float(np.abs((found - expected).mean(axis=(0, 2, 3))).max() / expected.std())


@pytest.mark.parametrize("seed", range(3))
def test_the_means_of_outputs_come_back(seed: int, worker: Worker) -> None:
    proto = build(seed)
    drafts, collector = drafts_of(proto, worker, bits=4)
    better = corrected(drafts, NODES, collector, samples(1))
    assert set(better.biases) == set(NODES)
    before, after = (mean_error(proto, one, samples(1)) for one in (drafts, better))
    assert before > 0.05
    assert after < 0.1 * before
    assert mean_error(proto, better, samples(2)) < 0.5 * mean_error(proto, drafts, samples(2))


def test_the_first_drafts_stay_as_they_are(worker: Worker) -> None:
    drafts, collector = drafts_of(build(0), worker, bits=8)
    corrected(drafts, NODES, collector, samples(1))
    assert not drafts.biases


def test_a_product_without_bias_gets_none(worker: Worker) -> None:
    rng = np.random.default_rng(0)
    proto = parse("g (float[n,5,8] x, float[8,8] w) => (float[n,5,8] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(rng.random((8, 8), np.float32), "w"))
    del proto.graph.input[1:]
    model, collector = Model.of(proto), Collector(worker, threads=1)
    feeds = [{"x": rng.random((1, 5, 8), np.float32)} for _ in range(4)]
    task = cast(
        Task, SimpleNamespace(new_run=lambda: Run(CPU, worker), options=SimpleNamespace(target="cpu"))
    )
    found = find_ranges(
        model, {"x": Form(False, False)}, lambda wanted: collector.collect(model, wanted, feeds), "minmax"
    )
    better = corrected(Drafts(task, model, found.found, 8), ["y"], collector, feeds)
    assert not better.biases
    assert not any(g.is_op(node, "Add") for node in g.nodes(better.build(["y"]).model.ir))
