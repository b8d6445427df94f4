"""Channels scaled before rounding (AWQ): the float model computes the same, and rounded it gets closer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper, parser

import graphopt
from graphopt.activations import Collector
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.weights.blocks import nearest
from graphopt_passes.weights.scaling import Scaled, scaled
from tests.support import compute, serialized
from tools import models

WIDTH = 64
CALIBRATION, TEST = (
    models.path("fashion_mlp").parent / f"fashion_{part}.npz" for part in ("calibration", "test")
)


def network(rng: np.random.Generator, body: str) -> ModelProto:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}')
    sizes = {"gamma": (WIDTH,), "beta": (WIDTH,)}
    for name in ("w", "v", "p", "q"):
        sizes[name] = (WIDTH, WIDTH)
    used = {name for node in proto.graph.node for name in node.input}
    for name in sorted(used & sizes.keys()):
        data = rng.standard_normal(sizes[name]).astype(np.float32)
        if name in {"gamma", "w"}:  # what makes the channels makes a few of them large
            data[..., rng.choice(WIDTH, 4, replace=False)] *= 30
        proto.graph.initializer.append(numpy_helper.from_array(data / 8, name))
    return proto


HEAD = f"g (float[n, {WIDTH}] x) => (float[n, {WIDTH}] y)"
BODIES = {
    "normalization": f"""{HEAD} {{ h = LayerNormalization(x, gamma, beta)
        a = MatMul(h, p)  b = MatMul(h, q)  y = Add(a, b) }}""",
    "layers in a row": f"{HEAD} {{ m = MatMul(x, w)  h = Relu(m)  y = Gemm<transB = 1>(h, p) }}",
}


def scaled_for(proto: ModelProto, worker: Worker, x: np.ndarray) -> Scaled:
    model = Model.of(proto)
    collector = Collector(worker, CPU)
    return scaled(
        model,
        Run(CPU, worker),
        lambda requests: collector.collect(model, requests, [{"x": row[None]} for row in x]),
        lambda rows: nearest(rows, 4, 32).real(),
    )


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("seed", range(3))
def test_the_float_model_computes_the_same_and_the_rounded_one_is_closer(
    worker: Worker, body: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    proto = network(rng, BODIES[body])
    x = rng.standard_normal((96, WIDTH)).astype(np.float32)
    found = scaled_for(proto, worker, x[:32])
    assert found.values == {"h"}
    after = serialized(found.model)
    [expected], [same] = compute(proto, {"x": x}), compute(after, {"x": x})
    np.testing.assert_allclose(same, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    noises = [
        np.square(compute(rounded(one), {"x": x[32:]})[0] - expected[32:]).sum() for one in (after, proto)
    ]
    assert noises[0] < 0.7 * noises[1]


def rounded(proto: ModelProto) -> ModelProto:
    """The model with the weights that read `h` in blocks of 4 bits."""
    other = ModelProto()
    other.CopyFrom(proto)
    readers = [node for node in other.graph.node if node.input[0] == "h" and node.op_type != "Relu"]
    for node in readers:
        weight = next(one for one in other.graph.initializer if one.name == node.input[1])
        data = numpy_helper.to_array(weight)
        turned = node.op_type == "Gemm"
        real = nearest(data if turned else data.T, 4, 32).real()
        weight.CopyFrom(numpy_helper.from_array(real if turned else real.T, weight.name))
    return other


@pytest.mark.parametrize("body", BODIES)
def test_moments_are_of_what_is_read_now(worker: Worker, body: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, WIDTH)).astype(np.float32)
    found = scaled_for(network(rng, BODIES[body]), worker, x)
    tapped = serialized(found.model)
    tapped.graph.output.append(helper.make_tensor_value_info("h", 1, None))
    _, h = compute(tapped, {"x": x})
    h = h.astype(np.float64)
    wrong = np.abs(found.inputs["h"].spread - h.var(axis=0))  # of products that are summed up as float32
    assert (wrong < 1e-6 * np.square(h).mean(axis=0)).all()
    np.testing.assert_allclose(found.inputs["h"].mean, h.mean(axis=0), rtol=1e-6, atol=1e-7)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_alike_channels_are_left_alone(worker: Worker, seed: int) -> None:
    rng = np.random.default_rng(seed)
    proto = network(rng, BODIES["normalization"])
    for weight in proto.graph.initializer:
        if weight.name in {"gamma", "beta"}:
            same = np.full(WIDTH, 0.5 if weight.name == "gamma" else 0, np.float32)
            weight.CopyFrom(numpy_helper.from_array(same, weight.name))
    sign = rng.permuted(np.tile([-1.0, 1.0], (32, WIDTH // 2)), axis=1).astype(np.float32)
    assert not scaled_for(proto, worker, sign).values, "all channels have the same size"


def test_a_weight_with_nan_is_not_scaled(worker: Worker) -> None:
    rng = np.random.default_rng(0)
    proto = network(rng, BODIES["normalization"])
    broken = next(one for one in proto.graph.initializer if one.name == "q")
    data = numpy_helper.to_array(broken).copy()
    data[0, 0] = np.nan
    broken.CopyFrom(numpy_helper.from_array(data, "q"))
    result = graphopt.optimize(
        proto,
        precision="int4-weights",
        rounding="awq",
        data={"x": rng.standard_normal((8, 1, WIDTH)).astype(np.float32)},
        verify=False,
        measure=False,
    )
    assert {layer.name: layer.precision for layer in result.report.layers} == {"p": "int4", "q": "float32"}


def test_dead_channels_do_not_make_others_huge(worker: Worker) -> None:
    rng = np.random.default_rng(0)
    proto = network(rng, BODIES["layers in a row"])
    w = next(one for one in proto.graph.initializer if one.name == "w")
    data = numpy_helper.to_array(w).copy()
    data[:, :3] *= 1e-20
    data[:, 3] = 0
    w.CopyFrom(numpy_helper.from_array(data, "w"))
    x = rng.standard_normal((32, WIDTH)).astype(np.float32)
    found = scaled_for(proto, worker, x)
    assert found.values
    sizes = [np.abs(numpy_helper.to_array(one)) for one in serialized(found.model).graph.initializer]
    assert max(size.max() for size in sizes) < 1e4
    [expected], [same] = compute(proto, {"x": x}), compute(serialized(found.model), {"x": x})
    np.testing.assert_allclose(same, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def int4(proto: ModelProto, data: dict[str, np.ndarray], rounding: str) -> graphopt.Result:
    return graphopt.optimize(
        proto,
        precision="int4-weights",
        rounding=rounding,
        data=data,
        max_drop="0dB",
        measure=False,
        threads=1,
    )


def test_a_trained_model_has_less_noise_than_without_samples() -> None:
    noises = {}
    for rounding in ("awq", "nearest"):
        result = graphopt.optimize(
            models.path("fashion_mlp"),
            precision="int4-weights",
            rounding=rounding,
            data=CALIBRATION,
            eval=TEST,
            max_drop="50%",
            calibration_limit=100,
            measure=False,
            threads=1,
        )
        assert {layer.method for layer in result.report.layers} == {rounding}
        assert {layer.name for layer in result.report.layers} == {"1.weight", "3.weight"}
        assert result.report.accuracy is not None
        noises[rounding] = result.report.accuracy.after.sqnr_db
        told = "values whose channels were scaled first: 1" in result.report.notes
        assert told == (rounding == "awq")
    assert noises["awq"] > noises["nearest"]


def test_weights_that_are_read_otherwise_are_rounded_without_samples() -> None:
    """A table that is looked up and multiplied with, and a Conv in groups."""
    rng = np.random.default_rng(0)
    body = f"""g (int64[n] i, float[1, 32, n] c) => (float[n, {WIDTH}] y, float[1, 64, n] z) {{
        e = Gather(w, i)  h = Relu(e)  t = Transpose(w)  y = MatMul(h, t)  z = Conv<group = 2>(c, k) }}"""
    proto = network(rng, body)
    kernel = rng.standard_normal((64, 16, 5)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(kernel, "k"))
    data = {
        "i": np.arange(40, dtype=np.int64).reshape(4, 10),
        "c": rng.standard_normal((4, 1, 32, 10)).astype(np.float32),
    }
    result = int4(proto, data, "awq")
    methods = {layer.name: layer.method for layer in result.report.layers}
    assert set(methods) == {"w", "k"} and set(methods.values()) <= {"hqq", "nearest"}


@pytest.mark.parametrize("kernel", [1, 3])
def test_kernels_of_convolutions_are_cut_off_for_their_inputs(kernel: int) -> None:
    """Each channel is as many columns as the kernel has elements."""
    rng = np.random.default_rng(0)
    proto = network(rng, "g (float[n, 32, 20] x) => (float[n, 64, m] y) { y = Conv(x, k) }")
    weight = rng.standard_normal((64, 32, kernel)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "k"))
    x = rng.standard_normal((8, 1, 32, 20)).astype(np.float32) * rng.exponential(3, (32, 1))
    noises = {}
    for rounding in ("awq", "nearest"):
        result = int4(proto, {"x": x.astype(np.float32)}, rounding)
        assert {(layer.name, layer.method) for layer in result.report.layers} == {("k", rounding)}
        assert result.report.accuracy is not None
        noises[rounding] = result.report.accuracy.after.sqnr_db
    assert noises["awq"] > noises["nearest"] + 0.3


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_what_is_read_along_two_axes_tells_nothing_of_columns(order: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    nodes = {"a": "a = MatMul(h, p)", "b": "b = Conv(h, k)"}
    body = f"""g (float[n, {WIDTH}, {WIDTH}] x) => (float[n, {WIDTH}, {WIDTH}] y) {{
        h = Relu(x) {" ".join(nodes[one] for one in order)} y = Add(a, b) }}"""
    proto = network(rng, body)
    kernel = rng.standard_normal((WIDTH, WIDTH, 1)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(kernel, "k"))
    x = rng.standard_normal((8, 1, WIDTH, WIDTH)).astype(np.float32)
    result = int4(proto, {"x": x}, "awq")
    methods = {layer.name: layer.method for layer in result.report.layers}
    assert methods.keys() == {"p", "k"} and set(methods.values()) <= {"hqq", "nearest"}


def test_empty_weights_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    body = f"""g (float[n, {WIDTH}] x) => (float[n, {WIDTH}] y, float[n, 0] z) {{
        y = MatMul(x, p)  z = MatMul(x, e) }}"""
    proto = network(rng, body)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((WIDTH, 0), np.float32), "e"))
    x = rng.standard_normal((8, 1, WIDTH)).astype(np.float32)
    assert {layer.name: layer.method for layer in int4(proto, {"x": x}, "awq").report.layers} == {"p": "awq"}
