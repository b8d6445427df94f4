"""A quantized model computes, without optimization, bit for bit what its scheme means; optimized, it fuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from graphopt.interface import Interface, differences
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.proof.executed import Executed
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.audit import audit
from graphopt_passes.quantize.insert_qdq import drop_unused, insert_qdq
from graphopt_passes.quantize.placement import Placement, consistent, saturates
from graphopt_passes.quantize.scheme import Grid, IntegerWeight, Scheme
from tests.support import compute, serialized

from tests.quantize.networks import images, sentences
from tests.quantize.simulation import Simulation, grids_of

Feeds = Mapping[str, Any]


def feeds_of(proto: onnx.ModelProto, seed: int, size: float = 1.0) -> Feeds:
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in proto.graph.initializer}
    shapes = {
        port.name: [dim.dim_value or 1 for dim in port.type.tensor_type.shape.dim]
        for port in proto.graph.input
        if port.name not in constants
    }
    return {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def quantized(
    proto: onnx.ModelProto, scheme: Scheme, worker: Worker, keep: frozenset[str] = frozenset()
) -> Model:
    """The model with this scheme; it must be valid, and have the interface that it had."""
    model = Model.of(proto)
    run = Run(CPU, worker, keep=keep)
    insert_qdq(model, run, Placement(model, run), scheme)
    drop_unused(model)
    after = serialized(model)
    onnx.checker.check_model(after, full_check=True)
    assert differences(Interface.of(proto), Interface.of(after)) == []
    return model


def simulation(proto: onnx.ModelProto, scheme: Scheme, worker: Worker) -> Simulation:
    return Simulation(proto, Placement(Model.of(proto), Run(CPU, worker)), scheme)


def assert_means(proto: onnx.ModelProto, scheme: Scheme, worker: Worker, seeds: int = 2) -> Model:
    """The quantized model gives what the simulation gives; the seeds also bring numbers beyond the grids."""
    model = quantized(proto, scheme, worker)
    simulated, after = simulation(proto, scheme, worker), serialized(model)
    for seed in range(seeds):
        feeds = feeds_of(proto, 100 + seed, size=1.0 + seed)
        for old, new in zip(simulated.run(feeds), compute(after, feeds), strict=True):
            np.testing.assert_array_equal(new, old)
    return model


def whole(proto: onnx.ModelProto, worker: Worker, **facts: Any) -> Scheme:
    """The scheme with every part that makes sense on integers, on the ranges of one sample."""
    placement = Placement(Model.of(proto), Run(CPU, worker))
    grids = grids_of(proto, feeds_of(proto, 0))
    fit = [
        name
        for name, part in placement.parts.items()
        if saturates(part, (grid := grids[part.outputs[0].name or ""]).low, grid.high)
    ]
    return Scheme(consistent(placement, fit), grids, **facts)


def optimized(model: Model, feeds: Feeds) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return list(ort.InferenceSession(serialized(model).SerializeToString(), options).run(None, dict(feeds)))


def weighted(text: str, opset: int = 17, functions: str = "", **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A model from its text, with random constants of these names and shapes."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(_header(opset, functions) + text + "\n" + functions)
    for name, shape in shapes.items():
        data = (0.5 * rng.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(data, name))
    onnx.checker.check_model(model)
    return model


def _header(opset: int, functions: str) -> str:
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    return f"<ir_version: 8, opset_import: [{imports}]> "


# Random networks.

NETWORKS = [(kind, seed, (13, 17, 21)[seed % 3]) for kind in (images, sentences) for seed in range(12)]


@pytest.mark.parametrize(("kind", "seed", "opset"), NETWORKS)
def test_any_choice_of_parts_means_what_the_scheme_says(
    kind: Any, seed: int, opset: int, worker: Worker
) -> None:
    proto = kind(seed, opset).model()
    names = list(Placement(Model.of(proto), Run(CPU, worker)).parts)
    rng = np.random.default_rng(seed)
    chosen = frozenset(name for name in names if rng.random() < 0.6)
    assert_means(proto, Scheme(chosen, grids_of(proto, feeds_of(proto, 0))), worker)


@pytest.mark.parametrize(("kind", "seed", "opset"), NETWORKS)
def test_everything_on_integers_fuses(kind: Any, seed: int, opset: int, worker: Worker) -> None:
    proto = kind(seed, opset).model()
    scheme = whole(proto, worker)
    model = assert_means(proto, scheme, worker)
    found = audit(Executed.of(model, worker=worker, threads=1))
    assert [str(problem) for problem in found.problems if problem.kind != "useless"] == []
    # The kernels round differently here and there: by far less than what quantization costs.
    feeds = feeds_of(proto, 0)
    exact, plain, fast = compute(proto, feeds), compute(serialized(model), feeds), optimized(model, feeds)
    for x, y, z in zip(exact, plain, fast, strict=True):
        assert np.square(z - x).sum() <= 2 * np.square(y - x).sum() + 1e-9 * np.square(x).sum()


def test_weights_and_biases_of_the_scheme_are_used(worker: Worker) -> None:
    proto = weighted(
        """agraph (float[1,4,6,6] x) => (float[1,4,6,6] y)
        { a = Conv<pads = [1,1,1,1]>(x, w)  r = Relu(a)  y = Conv(r, v) }""",
        w=(4, 4, 3, 3),
        v=(4, 4, 1, 1),
    )
    plain = whole(proto, worker)
    rng = np.random.default_rng(0)
    weights = {
        "a": IntegerWeight(
            rng.integers(-90, 90, (4, 4, 3, 3)).astype(np.int8), np.float32([0.02, 0.01, 0.03, 0.02]), 0
        ),
        "y": IntegerWeight(rng.integers(-90, 90, (4, 4, 1, 1)).astype(np.int8), np.float32([0.02]), 0),
    }
    biases = {name: rng.standard_normal(4).astype(np.float32) for name in ("a", "y")}
    scheme = Scheme(plain.nodes, plain.grids, weights, biases)
    assert scheme.nodes == {"a", "y"}
    assert_means(proto, scheme, worker)
