"""fuse-conv-affine: constant arithmetic and zero Pads merge exactly; what only looks alike stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.worker import Worker
from graphopt_passes.fuse.conv_affine import FuseConvAffine
from tests.passes.linear_cases import Case, Linear, assert_fused, largest, linears, normal
from tests.support import assert_same, compute, ops, parse, run_passes, serialized

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
ARITHMETIC = ("Mul", "Add", "Sub", "Div")


@st.composite
def operands(draw: st.DrawFn, linear: Linear, channels: int) -> np.ndarray:
    """A number, or one number per channel, in one of the shapes that broadcast along the channels."""
    rank = linear.x.ndim
    count = draw(st.sampled_from([1, channels]))
    ones = (1,) * (rank - 2)
    shape = draw(st.sampled_from([(count, *ones), (1, count, *ones), *([(), (1,)] if count == 1 else [])]))
    data = normal(np.random.default_rng(draw(st.integers(0, 2**32 - 1))), shape, linear.case.dtype)
    return np.asarray(np.copysign(np.maximum(np.abs(data), 0.25), data), linear.case.dtype)


def grown(scale: float, op_type: str, k: np.ndarray) -> float:
    factor = float(np.abs(k).max())
    return {"Mul": scale * factor, "Div": scale / float(np.abs(k).min())}.get(op_type, scale + factor)


@SETTINGS
@given(st.data(), st.sampled_from(ARITHMETIC), st.booleans())
def test_arithmetic_behind_a_linear_node(
    worker: Worker, data: st.DataObject, op_type: str, turned: bool
) -> None:
    linear = data.draw(linears("Conv", "ConvTranspose", "Gemm"))
    k = data.draw(operands(linear, linear.channels))
    linear.case.constant("k", k)
    order = ["k", "y"] if turned and op_type != "Div" else ["y", "k"]
    linear.case.add(op_type, order, "out")
    proto = linear.case.model(linear.x, "out")
    scale = grown(largest(linear), op_type, k)
    assert_fused(proto, linear, FuseConvAffine(), worker, gone=(op_type,), scale=scale)


@SETTINGS
@given(st.data(), st.sampled_from(ARITHMETIC))
def test_arithmetic_before_a_linear_node(worker: Worker, data: st.DataObject, op_type: str) -> None:
    linear = data.draw(linears("Conv", "Gemm", source="h"))
    case = linear.case
    k = data.draw(operands(linear, linear.x.shape[1]))
    case.constant("k", k)
    case.add(op_type, ["x", "k"], "h")
    case.nodes.reverse()
    if op_type in ("Add", "Sub"):
        for attribute in list(case.nodes[1].attribute):
            if attribute.name == "pads":
                case.nodes[1].attribute.remove(attribute)
    scale = grown(largest(linear), op_type, k) * (
        1 + linear.terms * float(np.abs(case.initializers["w"]).max())
    )
    assert_fused(case.model(linear.x, "y"), linear, FuseConvAffine(), worker, gone=(op_type,), scale=scale)


@SETTINGS
@given(st.data(), st.sampled_from(["Conv", "AveragePool"]), st.integers(1, 2), st.booleans())
def test_zero_pad_before_a_window(
    worker: Worker, data: st.DataObject, kind: str, rank: int, old: bool
) -> None:
    sizes = st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)
    pads, own = data.draw(sizes), data.draw(sizes)
    rng = np.random.default_rng(sum(pads))
    case = Case(opset=10 if old else 17)
    linear = Linear(case, normal(rng, (1, 2, *[5] * rank), np.float32), 3, 25, kind)
    around = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
    if old:
        case.add("Pad", ["x"], "h", pads=around)
    else:
        case.add("Pad", ["x", case.constant("p", np.array(around, np.int64))], "h")
    case.constant("w", normal(rng, (3, 2, *[3] * rank), np.float32))
    if kind == "Conv":
        case.add("Conv", ["h", "w"], "y", pads=own)
    else:
        case.add("AveragePool", ["h"], "y", kernel_shape=[5] * rank, pads=own, count_include_pad=1)
    proto = case.model(linear.x, "y")
    assert_fused(proto, linear, FuseConvAffine(), worker, gone=("Pad",), scale=largest(linear))


def test_scale_around_a_matmul(worker: Worker) -> None:
    text = """g (float[n,m,3] x) => (float[n,m,2] y)
      <float[3,2] w = {1,2,3,4,5,6}, float half = {0.5}, float[2] k = {2,4}>
      { h = Mul(x, half) p = MatMul(h, w) y = Mul(k, p) }"""
    proto = parse(text)
    model, _ = run_passes(proto, FuseConvAffine(), worker=worker)
    assert ops(model) == {"MatMul": 1}
    assert_same(proto, model, {"x": np.arange(12, dtype=np.float32).reshape(2, 2, 3)})


def test_arithmetic_behind_batch_normalization(worker: Worker) -> None:
    text = """g (float[n,2,h,w] x) => (float[n,2,h,w] y)
      <float[2] s = {1,2}, float[2] b = {3,4}, float[2] m = {1,1}, float[2] v = {1,1}, float[2,1,1] k = {2,4}>
      { p = BatchNormalization<epsilon=0.0>(x, s, b, m, v) q = Mul(p, k) y = Add(q, k) }"""
    proto = parse(text)
    model, _ = run_passes(proto, FuseConvAffine(), worker=worker)
    assert ops(model) == {"BatchNormalization": 1}
    assert_same(proto, model, {"x": np.arange(16, dtype=np.float32).reshape(2, 2, 2, 2)})


CONSTANTS = """<float[2,1,1,1] w = {1, 2}, float[1,1,1,4] columns = {1,2,3,4}, float[2] two = {1,2},
    float zero = {0}, float one = {1}, float[1,1,1,1,1] deep = {2}, float[4,1,1] four = {1,2,3,4},
    int64[8] p = {0,0,1,1,0,0,1,1}, int64[8] pc = {0,1,0,0,0,0,0,0}, int64[8] crop = {0,0,-1,0,0,0,0,0}>"""


@pytest.mark.parametrize(
    ("body", "stays", "reason"),
    [
        ("h = Conv(x, w) y = Mul(h, columns)", "Mul", "along other axes"),
        ("h = Conv(x, w) y = Add(h, deep)", "Add", "raise the rank"),
        ("h = Conv(x, w) y = Div(one, h)", "Div", "divides the constant"),
        ("h = Conv(x, w) y = Div(h, zero)", "Div", "divides by 0"),
        ("h = Add(x, one) y = Conv<pads=[1,1,1,1]>(h, w)", "Add", "pads with zeros"),
        ('h = Pad<mode="edge">(x, p) y = Conv(h, w)', "Pad", "repeats"),
        ("h = Pad(x, p, one) y = Conv(h, w)", "Pad", "fill with zeros"),
        ("h = Pad(x, crop) y = Conv(h, w)", "Pad", "crops"),
        ('h = Pad(x, p) y = Conv<auto_pad="SAME_UPPER">(h, w)', "Pad", "auto_pad"),
        ("h = Pad(x, p) y = AveragePool<kernel_shape=[2,2],ceil_mode=1>(h)", "Pad", "ceil_mode"),
        ("h = Pad(x, p) y = AveragePool<kernel_shape=[3,3],pads=[1,0,0,0]>(h)", "Pad", "not counted"),
        ("h = Pad(x, p) y = AveragePool<kernel_shape=[1,1]>(h)", "Pad", "less than the kernel"),
    ],
)
def test_refusals(worker: Worker, body: str, stays: str, reason: str) -> None:
    proto = parse(f"g (float[1,1,2,4] x) => (float[i,j,k,l] y) {CONSTANTS} {{ {body} }}")
    if "deep" in body:
        proto.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "m"
    model, run = run_passes(proto, FuseConvAffine(), worker=worker)
    assert ops(model)[stays] == 1
    assert any(reason in refusal.reason for refusal in run.journal.refusals), run.journal.refusals
    assert_same(proto, model, {"x": np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4)})


def test_a_constant_that_widens_the_channels_stays(worker: Worker) -> None:
    text = """g (float[1,c,2,2] x) => (float[i,j,k,l] y) <float[4,1,1] four = {1,2,3,4},
      float[1,4,1,1] w = {1,1,1,1}> { h = Mul(x, four) y = Conv(h, w) }"""
    proto = parse(text)
    model, run = run_passes(proto, FuseConvAffine(), worker=worker)
    assert ops(model) == {"Mul": 1, "Conv": 1}
    assert any("not known to have 4 channels" in refusal.reason for refusal in run.journal.refusals)


def test_max_pool_never_takes_a_pad(worker: Worker) -> None:
    text = """g (float[1,1,2,4] x) => (float[i,j,k,l] y) <int64[8] p = {0,0,1,1,0,0,1,1}>
      { h = Pad(x, p) y = MaxPool<kernel_shape=[2,2]>(h) }"""
    proto = parse(text)
    model, _ = run_passes(proto, FuseConvAffine(), worker=worker)
    assert ops(model) == {"Pad": 1, "MaxPool": 1}
    feeds = {"x": np.full((1, 1, 2, 4), -1, np.float32)}
    np.testing.assert_array_equal(compute(serialized(model), feeds)[0], compute(proto, feeds)[0])
