"""div-to-mul: exact reciprocals only, to the last bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.worker import Worker
from graphopt_passes.exact.div_to_mul import DivToMul, are_powers_of_two
from tests.support import compute, ops, parse, run_passes, serialized
from tests.traps import kit

LEAST = {"float": -126, "double": -1022, "float16": -14}
KINDS = {"float": np.float32, "double": np.float64, "float16": np.float16}


def division(dtype: str, divisor: np.ndarray, shape: str = "n"):
    """A graph that divides x by the constant c."""
    return kit.model(f"g ({dtype}[{shape}] x) => ({dtype}[{shape}] y) {{ y = Div(x, c) }}", c=divisor)


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}")


def inputs(kind: type, count: int = 2000) -> np.ndarray:
    """Numbers of all magnitudes, with both zeros, infinities and the smallest and largest ones."""
    rng = np.random.default_rng(0)
    info = np.finfo(kind)
    drawn = rng.integers(
        0, np.iinfo(f"u{np.dtype(kind).itemsize}").max, count, f"u{np.dtype(kind).itemsize}"
    ).view(kind)
    edges = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        info.max,
        info.tiny,
        info.smallest_subnormal,
        -info.smallest_subnormal,
    ]
    return np.concatenate([drawn, np.array(edges, kind)])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(list(LEAST)), st.floats(0, 1), st.booleans())
def test_the_quotient_is_the_same_to_the_last_bit(
    worker: Worker, dtype: str, at: float, negative: bool
) -> None:
    kind, least = KINDS[dtype], LEAST[dtype]
    power = round(least + at * -2 * least)
    proto = division(dtype, np.array((-1.0 if negative else 1.0) * 2.0**power, kind))
    model, _ = run_passes(proto, DivToMul(), worker=worker)
    assert ops(model) == {"Mul": 1}
    x = inputs(kind)
    with np.errstate(all="ignore"):
        (old,), (new,) = compute(proto, {"x": x}), compute(serialized(model), {"x": x})
    numbers = ~np.isnan(old)
    np.testing.assert_array_equal(np.isnan(new), ~numbers)
    np.testing.assert_array_equal(bits(new)[numbers], bits(old)[numbers])


@pytest.mark.parametrize(
    "number", [3.0, 0.1, 0.0, -0.0, np.inf, np.nan, 2.0**-127, 2.0**-149, 2.0**127, np.float32(1 + 2**-23)]
)
def test_a_rounded_or_subnormal_reciprocal_stays(worker: Worker, number: float) -> None:
    proto = division("float", np.array([2.0, number], np.float32), "n,2")
    model, run = run_passes(proto, DivToMul(), worker=worker)
    assert ops(model) == {"Div": 1}
    assert [refusal.reason for refusal in run.journal.refusals] == ["the reciprocal of 'c' is rounded"]


def test_powers_per_channel_broadcast(worker: Worker) -> None:
    proto = division("float", np.array([[0.5], [-4], [1]], np.float32), "n,3,1")
    model, _ = run_passes(proto, DivToMul(), worker=worker)
    assert ops(model) == {"Mul": 1}
    x = inputs(np.float32, 1).reshape(3, 3, 1)
    np.testing.assert_array_equal(compute(serialized(model), {"x": x}), compute(proto, {"x": x}))


@pytest.mark.parametrize(
    "graph",
    [
        "g (int32[n] x) => (int32[n] y) <int32 c = {2}> { y = Div(x, c) }",
        "g (float[n] x) => (float[n] y) <float c = {2}> { y = Div(c, x) }",
        "g (float[n] x, float c = {2}) => (float[n] y) { y = Div(x, c) }",
        "g (float[n] x, float c) => (float[n] y) { y = Div(x, c) }",
        "g (float[n,n] x) => (float[n,n] y) <float c = {8}> { s = MatMul(x, x) y = Div(s, c) }",
        "g (float[n,n] x) => (float[n,n] y) <float c = {8}> { q = Div(x, c) y = MatMul(q, x) }",
    ],
)
def test_other_divisions_stay(worker: Worker, graph: str) -> None:
    model, _ = run_passes(parse(graph), DivToMul(), worker=worker)
    assert ops(model)["Div"] == 1


def test_bfloat16_powers_are_recognized() -> None:
    assert are_powers_of_two(np.array([2.0**-126, -(2.0**126)], ml_dtypes.bfloat16), -126)
    assert not are_powers_of_two(np.array([3.0], ml_dtypes.bfloat16), -126)
