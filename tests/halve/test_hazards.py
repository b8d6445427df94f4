"""What must stay float: each rule finds what it is about, and lets alone what is harmless."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.activations import Collector, Statistics
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU, Target
from graphopt_passes.halve.hazards import beyond, hazards, requests, sizes
from graphopt_passes.halve.limits import limits
from graphopt_passes.halve.masks import soften
from tests.support import assert_same, parse
from tests.traps import kit


def seen(model: Model, worker: Worker, feeds: Iterable[kit.Feeds]) -> Statistics:
    return Collector(worker).collect(model, requests(model), list(feeds))


def kept(proto: onnx.ModelProto, worker: Worker, *feeds: kit.Feeds, half: str = "float16") -> dict[str, str]:
    model = Model.of(proto)
    statistics = seen(model, worker, feeds) if feeds else Statistics()
    return hazards(model, Run(CPU, worker), half, statistics)


NORM = """g (float[2,64] x) => (float[2,64] y) {
    m = ReduceMean<axes = [1]>(x)
    d = Sub(x, m)
    s = Pow(d, two)
    v = ReduceMean<axes = [1]>(s)
    e = Add(v, eps)
    r = Sqrt(e)
    q = Div(d, r)
    y = MatMul(q, w)
}"""


def norm() -> onnx.ModelProto:
    weights: dict[str, Any] = {"two": kit.scalar(2), "eps": kit.scalar(1e-5), "w": kit.normal(64, 64)}
    return kit.model(NORM, **weights)


def test_a_norm_that_is_spelled_out_is_kept_without_any_samples(worker: Worker) -> None:
    found = kept(norm(), worker)
    assert found.keys() == {"s", "v", "e", "r", "q"}
    assert set(found.values()) == {"it is part of a normalization that is spelled out"}
    assert kept(norm(), worker, half="bfloat16") == {}  # its squares overflow no sooner than float's


@pytest.mark.parametrize(("scale", "is_kept"), [(1.0, False), (20.0, False), (70.0, True), (0.01, True)])
def test_a_norm_whose_squares_keep_clear_of_both_ends_may_be_half(
    scale: float, is_kept: bool, worker: Worker
) -> None:
    rows = np.linspace(-2, 2, 128, dtype=np.float32).reshape(64, 2).T  # squares up to 4, their mean above 1
    found = kept(norm(), worker, {"x": np.ascontiguousarray(rows) * np.float32(scale)})
    assert ("s" in found) is is_kept and ("q" in found) is is_kept


def test_a_root_mean_square_that_multiplies(worker: Worker) -> None:
    proto = kit.model(
        """g (float[2,64] x) => (float[2,64] y) {
        s = Mul(x, x)
        v = ReduceMean<axes = [1]>(s)
        e = Add(v, eps)
        r = Sqrt(e)
        i = Reciprocal(r)
        y = Mul(x, i)
    }""",
        eps=kit.scalar(1e-5),
    )
    assert kept(proto, worker).keys() == {"s", "v", "e", "r", "i", "y"}


def test_an_overflow_that_outputs_hide(worker: Worker) -> None:
    """(300 x)² overflows; divided by it all is 0, which is finite and wrong."""
    proto = kit.model(
        "g (float[2,4] x) => (float[2,4] y) { a = Mul(x, c) b = Mul(a, a) y = Div(x, b) }", c=kit.scalar(300)
    )
    found = kept(proto, worker, {"x": np.full((2, 4), 2, np.float32)})
    assert found.keys() == {"b", "y"}
    assert found["b"] == "'b' reaches 3.6e+05; float16 ends at 65504"
    assert kept(proto, worker, {"x": np.full((2, 4), 2, np.float32)}, half="bfloat16") == {}


def test_other_samples_may_be_twice_as_large(worker: Worker) -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Neg(x) y = Sigmoid(a) }")
    assert kept(proto, worker, {"x": np.array([0, 33000], np.float32)}).keys() == {"a", "y"}
    assert kept(proto, worker, {"x": np.array([0, 32000], np.float32)}) == {}


@pytest.mark.parametrize(("largest", "is_kept"), [(3.0, False), (100.0, True)])
def test_angles_that_turn_often(largest: float, is_kept: bool, worker: Worker) -> None:
    proto = kit.model("g (float[4] x) => (float[4] y) { a = Mul(x, c) y = Sin(a) }", c=kit.scalar(1.0))
    found = kept(proto, worker, {"x": np.linspace(0, largest, 4, dtype=np.float32)})
    assert ("y" in found and "a" in found) is is_kept


def test_numbers_that_vanish(worker: Worker) -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Neg(x) y = Sqrt(a) }")
    assert kept(proto, worker, {"x": np.array([0, -1e-6], np.float32)}).keys() == {"a", "y"}
    assert kept(proto, worker, {"x": np.array([-1e-6, -1], np.float32)}) == {}
    assert kept(proto, worker, {"x": np.zeros(2, np.float32)}) == {}


def test_an_epsilon_that_vanishes_is_kept_up_to_the_division(worker: Worker) -> None:
    text = "g (float[2,4] x) => (float[2,4] y) { n = ReduceL2<axes = [1]>(x) e = Add(n, c) y = Div(x, e) }"
    found = kept(kit.model(text, c=kit.scalar(1e-12)), worker)
    assert found == {name: "1e-12 is 0 in float16" for name in ("e", "y")}
    assert kept(kit.model(text, c=kit.scalar(1e-5)), worker) == {}


@pytest.mark.parametrize(("number", "is_kept"), [(65504, False), (65505, False), (65536, True), (1e9, True)])
def test_constants_beyond_the_end(number: float, is_kept: bool, worker: Worker) -> None:
    proto = kit.model("g (float[2] x) => (float[2] y) { y = Div(x, c) }", c=kit.scalar(number))
    assert bool(kept(proto, worker)) is is_kept


def test_infinity_is_no_overflow(worker: Worker) -> None:
    proto = kit.model("g (float[2] x) => (float[2] y) { y = Max(x, c) }", c=kit.scalar(-np.inf))
    assert kept(proto, worker) == {}


def test_small_weights_among_others_are_harmless_unless_divided_by(worker: Worker) -> None:
    small = np.array([1, 1e-12], np.float32)
    assert kept(kit.model("g (float[2] x) => (float[2] y) { y = Mul(x, c) }", c=small), worker) == {}
    divided = kept(kit.model("g (float[2] x) => (float[2] y) { y = Div(x, c) }", c=small), worker)
    assert divided == {"y": "'c' holds divisors that are lost in float16"}


@pytest.mark.parametrize(("terms", "is_kept"), [(2048, False), (2049, True)])
def test_deep_sums(terms: int, is_kept: bool, worker: Worker) -> None:
    proto = parse(f"g (float[1,{terms}] x) => (float[1,1] y) {{ y = ReduceMean<axes = [1]>(x) }}")
    assert bool(kept(proto, worker)) is is_kept


def test_shape_arithmetic(worker: Worker) -> None:
    proto = kit.model(
        """g (float[N,4] x) => (float[M,4] y) {
        s = Shape(x)
        f = Cast<to = 1>(s)
        h = Mul(f, half)
        r = Ceil(h)
        i = Cast<to = 7>(r)
        y = Slice(x, zero, i)
    }""",
        half=np.array([0.5, 1], np.float32),
        zero=kit.ints(0, 0),
    )
    assert kept(proto, worker).keys() == {"f", "h", "r"}


def test_what_a_mixed_model_computes_in_float(worker: Worker) -> None:
    proto = kit.model(
        """g (float16[2,4] x) => (float16[2,4] y) {
        a = Cast<to = 1>(x)
        b = Exp(a)
        c = Cast<to = 10>(b)
        s = Cast<to = 1>(w)
        d = Cast<to = 10>(s)
        y = Add(c, d)
    }""",
        w=kit.normal(4, dtype=np.float16),
    )
    assert kept(proto, worker).keys() == {"a", "b"}  # a weight that is only stored as half says nothing


QUANTIZED = """g (float[2,4] x) => (float[2,4] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    a = Relu(d)
    r = QuantizeLinear(a, s, z)
    e = DequantizeLinear(r, s, z)
    b = Neg(e)
    y = Exp(b)
}"""


def on_integers(scale: float = 0.1) -> onnx.ModelProto:
    return kit.model(QUANTIZED, s=kit.scalar(scale), z=np.array(0, np.int8))


def test_what_is_quantized_is_kept_for_the_integer_kernels_of_cpus(worker: Worker) -> None:
    reasons = kept(on_integers(), worker)
    assert {name for name, why in reasons.items() if why == "it is quantized"} == {"a", "b"}
    model = Model.of(on_integers())
    assert hazards(model, Run(Target.named("cuda"), worker), "float16", Statistics()) == {}


@pytest.mark.parametrize(("scale", "is_kept"), [(2.0**-16, False), (1e-5, False), (1.03e-6, True)])
def test_scales_that_lose_digits(scale: float, is_kept: bool, worker: Worker) -> None:
    model = Model.of(on_integers(scale))
    found = hazards(model, Run(Target.named("cuda"), worker), "float16", Statistics())
    assert found.keys() == ({"q", "d", "r", "e"} if is_kept else set())


def test_a_logarithm_of_what_is_kept_from_zero(worker: Worker) -> None:
    text = "g (float[2,4] x) => (float[2,4] y) { m = Max(x, c) l = Log(m) y = Neg(l) }"
    assert kept(kit.model(text, c=kit.scalar(1e-10)), worker) == dict.fromkeys("ml", "1e-10 is 0 in float16")


def test_sizes_are_means_over_the_samples(worker: Worker) -> None:
    model = Model.of(parse("g (float[N] x) => (float[N] y) { y = Neg(x) }"))
    found = sizes(seen(model, worker, [{"x": np.zeros(2, np.float32)}, {"x": np.zeros(4, np.float32)}]))
    assert found == {"x": 3, "y": 3}


def test_the_end_of_what_an_interface_holds(worker: Worker) -> None:
    model = Model.of(parse("g (float[2] x) => (float[2] y) { y = Exp(x) }"))
    statistics = seen(model, worker, [{"x": np.array([1, 12], np.float32)}])
    assert beyond(model.ir.graph.inputs[0], "float16", statistics) == ""
    assert beyond(model.ir.graph.outputs[0], "float16", statistics).startswith("'y' reaches 1.63e+05")


def test_limits() -> None:
    half, brain = limits("float16"), limits("bfloat16")
    assert (half.largest, half.least, half.terms) == (65504, 2.0**-14, 2048)
    assert (brain.largest, brain.least, brain.terms) == (float(2.0**128 - 2.0**120), 2.0**-126, 256)
    assert half.error(np.array([65536.0], np.float32)) == np.inf
    assert half.error(np.zeros(3, np.float32)) == 0


# Masks.

ATTENTION = """g (float[1,4,8] x, float[1,4] m) => (float[1,4,8] y) {
    k = Transpose<perm = [0, 2, 1]>(x)
    s = MatMul(x, k)
    n = Sub(one, m)
    p = Mul(n, least)
    a = Add(s, p)
    w = Softmax(a)
    y = MatMul(w, x)
}"""


def attention(least: float) -> onnx.ModelProto:
    return kit.model(ATTENTION, one=kit.scalar(1), least=kit.scalar(least))


@pytest.mark.parametrize("least", [-1e9, float(np.finfo(np.float32).min)])
def test_masks_are_raised_and_mean_the_same(least: float, worker: Worker) -> None:
    proto, feeds = attention(least), {"x": kit.normal(1, 4, 8), "m": np.array([[1, 1, 0, 1]], np.float32)}
    model, run = Model.of(proto), Run(CPU, worker)
    told = soften(model, run, "float16", seen(model, worker, [feeds]))
    assert told == [f"{least:.3g} in front of a Softmax became -8188, which float16 holds"]
    assert_same(proto, model, feeds)
    assert hazards(model, run, "float16", seen(model, worker, [feeds])) == {}


def test_masks_that_float16_holds_are_left(worker: Worker) -> None:
    model = Model.of(attention(-10000))
    assert soften(model, Run(CPU, worker), "float16", Statistics()) == []


def test_what_else_a_large_constant_is_read_by_stops_it(worker: Worker) -> None:
    text = ATTENTION.replace("(float[1,4,8] y)", "(float[1,4,8] y, float[1,4] z)").replace(
        "}", "z = Neg(p) }"
    )
    proto = kit.model(text, one=kit.scalar(1), least=kit.scalar(-1e9))
    model, run = Model.of(proto), Run(CPU, worker)
    feeds = {"x": kit.normal(1, 4, 8), "m": np.array([[1, 1, 0, 1]], np.float32)}
    statistics = seen(model, worker, [feeds])
    assert soften(model, run, "float16", statistics) == []
    assert {"p", "a", "w", "z"} <= hazards(model, run, "float16", statistics).keys()


def test_a_factor_above_one_stops_it(worker: Worker) -> None:
    model = Model.of(attention(-1e9))
    statistics = seen(model, worker, [{"x": kit.normal(1, 4, 8), "m": np.full((1, 4), -3, np.float32)}])
    assert soften(model, Run(CPU, worker), "float16", statistics) == []
