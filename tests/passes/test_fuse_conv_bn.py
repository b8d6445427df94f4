"""fuse-conv-bn: exact up to rounding where it applies, and a reason where it does not."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.worker import Worker
from graphopt_passes.fuse.conv_bn import FuseConvBn
from tests.passes.linear_cases import Array, Case, Linear, assert_fused, largest, linears, normal
from tests.support import assert_same, ops, parse, run_passes

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)


def normalize(case: Case, seed: int, channels: int, source: str, output: str) -> tuple[float, float]:
    """Add a BatchNormalization; returns bounds on its scale and shift."""
    rng = np.random.default_rng(seed)
    scale, bias, mean = (normal(rng, (channels,), case.dtype) for _ in range(3))
    variance = rng.uniform(0.5, 2.0, channels).astype(case.dtype)
    parts: dict[str, Array] = {"s": scale, "b": bias, "m": mean, "v": variance}
    names = [case.constant(f"{output}_{name}", data) for name, data in parts.items()]
    case.add("BatchNormalization", [source, *names], output, epsilon=1e-3)
    factor = float(np.abs(scale).max() / np.sqrt(0.5))
    return factor, float(np.abs(bias).max() + np.abs(mean).max() * factor)


@SETTINGS
@given(linears("Conv", "ConvTranspose", "Gemm"), SEEDS)
def test_normalization_behind_a_linear_node(worker: Worker, linear: Linear, seed: int) -> None:
    factor, shift = normalize(linear.case, seed, linear.channels, "y", "out")
    scale = largest(linear) * factor + shift
    proto = linear.case.model(linear.x, "out")
    assert_fused(proto, linear, FuseConvBn(), worker, gone=("BatchNormalization",), scale=scale)


@SETTINGS
@given(linears("Conv", "Gemm", source="h"), SEEDS)
def test_normalization_before_a_linear_node(worker: Worker, linear: Linear, seed: int) -> None:
    case = linear.case
    factor, shift = normalize(case, seed, linear.x.shape[1], "x", "h")
    case.nodes.reverse()
    for node in case.nodes:
        for attribute in list(node.attribute):
            if attribute.name == "pads":
                node.attribute.remove(attribute)
    proto = case.model(linear.x, "y")
    scale = largest(linear) * factor + linear.terms * shift * float(np.abs(case.initializers["w"]).max())
    assert_fused(proto, linear, FuseConvBn(), worker, gone=("BatchNormalization",), scale=scale)


@SETTINGS
@given(SEEDS, st.integers(1, 4))
def test_two_normalizations(worker: Worker, seed: int, channels: int) -> None:
    case = Case()
    x = normal(np.random.default_rng(seed), (2, channels, 3), np.float32)
    first, shift = normalize(case, seed, channels, "x", "h")
    second, second_shift = normalize(case, seed + 1, channels, "h", "y")
    scale = (float(np.abs(x).max()) * first + shift) * second + second_shift
    linear = Linear(case, x, channels, 1, "BatchNormalization")
    proto = case.model(x, "y")
    assert_fused(proto, linear, FuseConvBn(), worker, gone=(), scale=scale)
    model, _ = run_passes(proto, FuseConvBn(), worker=worker)
    assert ops(model) == {"BatchNormalization": 1}


CONSTANTS = """<float[2,1,1,1] w = {1, 2}, float[2] s = {1, 2}, float[2] b = {3, 4}, float[2] m = {1, 1},
                float[2] v = {1, 1}, float[1] s1 = {2}, float[1] b1 = {3}, float[1] m1 = {1},
                float[1] v1 = {1}>"""
IMAGE = {"x": np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4)}


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("h = Conv(x, w) y = BatchNormalization(h, s, b, m, v) z = Relu(h)", "y, z", "has 2 consumers"),
        ("y = Conv(x, w) z = BatchNormalization(y, s, b, m, v)", "y, z", "is a graph output"),
        ("h = Conv(x, w) y = BatchNormalization(h, b, s, m, z0) z = Relu(x)", "y, z", "not finite"),
        (
            "h = BatchNormalization(x, s1, b1, m1, v1) y = Conv<pads=[1,1,1,1]>(h, w) z = Relu(x)",
            "y, z",
            "pads with zeros",
        ),
        (
            "q = Abs(w) h = Conv(x, q) y = BatchNormalization(h, s, b, m, v) z = Relu(x)",
            "y, z",
            "weight is no constant",
        ),
    ],
)
def test_refusals(worker: Worker, body: str, outputs: str, reason: str) -> None:
    constants = CONSTANTS.replace("<", "<float[2] z0 = {-1, -1}, ", 1)
    names = ", ".join(f"float[i{k},j{k},k{k},l{k}] {name}" for k, name in enumerate(outputs.split(", ")))
    proto = parse(f"g (float[1,1,2,4] x) => ({names}) {constants} {{ {body} }}")
    model, run = run_passes(proto, FuseConvBn(), worker=worker)
    assert ops(model)["BatchNormalization"] == 1
    assert any(reason in refusal.reason for refusal in run.journal.refusals), run.journal.refusals
    assert_same(proto, model, IMAGE)


def test_training_mode_is_refused(worker: Worker) -> None:
    text = f"""g (float[1,1,2,4] x) => (float[n,c,i,j] y) {CONSTANTS}
      {{ h = Conv(x, w) y = BatchNormalization<training_mode=1>(h, s, b, m, v) }}"""
    model, run = run_passes(parse(text), FuseConvBn(), worker=worker)
    assert ops(model)["BatchNormalization"] == 1
    assert any("training" in refusal.reason for refusal in run.journal.refusals)


def test_normalization_of_every_position_is_refused(worker: Worker) -> None:
    text = f"""g (float[1,1,2,4] x) => (float[n,c,i,j] y) {CONSTANTS}
      {{ h = Conv(x, w) y = BatchNormalization<spatial=0>(h, s, b, m, v) }}"""
    model, run = run_passes(parse(text, opset=8), FuseConvBn(), worker=worker)
    assert ops(model)["BatchNormalization"] == 1
    assert any("spatial" in refusal.reason for refusal in run.journal.refusals)


def test_bfloat16_weights_keep_their_type(worker: Worker) -> None:
    case = Case(ml_dtypes.bfloat16)
    rng = np.random.default_rng(0)
    case.constant("w", normal(rng, (2, 1, 1, 1), ml_dtypes.bfloat16))
    case.add("Conv", ["x", "w"], "h")
    normalize(case, 1, 2, "h", "y")
    proto = case.model(normal(rng, (1, 1, 2, 2), ml_dtypes.bfloat16), "y")
    model, _ = run_passes(proto, FuseConvBn(), worker=worker)
    assert ops(model) == {"Conv": 1}
    weight = model.ir.graph[-1].inputs[1]
    old = case.initializers
    factor = old["y_s"].astype(float) / np.sqrt(old["y_v"].astype(float) + 1e-3)
    wanted = (old["w"].astype(float) * factor.reshape(2, 1, 1, 1)).astype(ml_dtypes.bfloat16)
    assert weight is not None and weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), wanted)


def test_a_large_shared_weight_is_refused(worker: Worker) -> None:
    case = Case()
    rng = np.random.default_rng(0)
    case.constant("w", normal(rng, (32, 32, 3, 3), np.float32))
    for name in "ab":
        case.add("Conv", ["x", "w"], f"conv_{name}")
        normalize(case, 1, 32, f"conv_{name}", name)
    proto = case.model(normal(rng, (1, 32, 4, 4), np.float32), "a", "b")
    model, run = run_passes(proto, FuseConvBn(), worker=worker)
    assert ops(model)["BatchNormalization"] == 2
    assert any("shared" in refusal.reason for refusal in run.journal.refusals)


def test_half_precision_overflow_is_refused(worker: Worker) -> None:
    case = Case(np.float16)
    case.constant("w", np.full((1, 1, 1, 1), 6e4))
    case.initializers["w"] = case.initializers["w"].astype(np.float16)
    case.add("Conv", ["x", "w"], "h")
    ones = np.ones(1, np.float16)
    names = [case.constant(n, d) for n, d in (("s", 4 * ones), ("b", ones), ("m", ones), ("v", ones))]
    case.add("BatchNormalization", ["h", *names], "y")
    model, run = run_passes(case.model(np.ones((1, 1, 2, 2), np.float16), "y"), FuseConvBn(), worker=worker)
    assert ops(model)["BatchNormalization"] == 1
    assert any("not finite" in refusal.reason for refusal in run.journal.refusals)
