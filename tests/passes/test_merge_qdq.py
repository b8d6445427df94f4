"""merge-qdq: integers survive DequantizeLinear and QuantizeLinear of one grid, and of no other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.worker import Worker
from graphopt_passes.exact.eliminate_dead_code import EliminateDeadCode
from graphopt_passes.exact.merge_qdq import MergeQdq
from tests.support import assert_same, compute, ops, run_passes
from tests.traps.kit import model

KINDS = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16}
BODY = "f = DequantizeLinear(q, s, z) r = QuantizeLinear(f, t, u) y = Identity(r)"
S, Z = np.float32(0.1), np.int8(3)


def numbers(kind: type) -> np.ndarray:
    """Every integer of a type."""
    info = np.iinfo(kind)
    return np.arange(info.min, info.max + 1).astype(kind)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(list(KINDS)),
    st.floats(float(np.finfo(np.float32).tiny), 2.0**111, width=32),
    st.floats(0, 1),
)
def test_every_integer_comes_back(worker: Worker, name: str, scale: float, at: float) -> None:
    kind = KINDS[name]
    info = np.iinfo(kind)
    zero = kind(round(info.min + at * (info.max - info.min)))
    grid = {"s": np.float32(scale), "z": zero}
    proto = model(
        f"""g ({name}[n] q) => ({name}[n] y) {{
        f = DequantizeLinear(q, s, z) r = QuantizeLinear(f, s, z) y = Identity(r) }}""",
        opset=21,
        ir_version=10,
        **grid,
    )
    result, _ = run_passes(proto, MergeQdq(), EliminateDeadCode(), worker=worker)
    assert ops(result) == {"Identity": 1}
    q = numbers(kind)
    np.testing.assert_array_equal(compute(proto, {"q": q})[0], q)
    assert_same(proto, result, {"q": q})


def test_two_pairs_are_one(worker: Worker) -> None:
    proto = model(
        """g (float[n] x) => (float[n] y) {
        a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z)
        c = QuantizeLinear(b, t, u) d = DequantizeLinear(c, t, u) y = Relu(d) }""",
        **{"s": S, "z": Z, "t": S, "u": Z},
    )
    result, _ = run_passes(proto, MergeQdq(), EliminateDeadCode(), worker=worker)
    assert ops(result) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Relu": 1}
    assert_same(proto, result, {"x": np.array([0, -0.0, 0.149, 1e9, -np.inf, np.inf], np.float32)})


def test_floats_that_others_use_stay(worker: Worker) -> None:
    proto = model(
        "g (int8[n] q) => (int8[n] y, float[n] f) { " + BODY + " }", **{"s": S, "z": Z, "t": S, "u": Z}
    )
    result, _ = run_passes(proto, MergeQdq(), EliminateDeadCode(), worker=worker)
    assert ops(result) == {"DequantizeLinear": 1, "Identity": 1}
    assert_same(proto, result, {"q": numbers(np.int8)})


def test_channels_on_one_axis_come_back(worker: Worker) -> None:
    scales, zeros = np.array([0.1, 3, 1e-3], np.float32), np.array([0, 5, -128], np.int8)
    proto = model(
        """g (int8[n,3] q) => (int8[n,3] y) {
        f = DequantizeLinear(q, s, z) r = QuantizeLinear<axis = 1>(f, t, z) y = Identity(r) }""",
        **{"s": scales, "z": zeros, "t": scales},
    )
    result, _ = run_passes(proto, MergeQdq(), EliminateDeadCode(), worker=worker)
    assert ops(result) == {"Identity": 1}
    assert_same(proto, result, {"q": numbers(np.int8)[:255].reshape(-1, 3)})


@pytest.mark.parametrize(
    ("body", "grids", "reason"),
    [
        (BODY, {"t": np.float32(0.2), "u": Z}, "the grids differ"),
        (BODY, {"t": S, "u": np.int8(4)}, "the grids differ"),
        (BODY, {"s": np.float32(1e-40), "t": np.float32(1e-40), "u": Z}, "extreme"),
        (BODY, {"s": np.float32(1e38), "t": np.float32(1e38), "u": Z}, "extreme"),
        (BODY, {"s": np.float32(-1), "t": np.float32(-1), "u": Z}, "not positive"),
        (
            BODY.replace("(f, t, u)", "(f, t)").replace("y = Id", "y = Cast<to = 3>(r) n = Id"),
            {"t": S},
            "types",
        ),
        (
            BODY.replace("Linear(f", "Linear<axis = 0>(f"),
            {"s": np.array([1, 2], np.float32), "t": np.array([1, 2], np.float32), "z": np.int8([0, 1])}
            | {"u": np.int8([0, 1])},
            "different axes",
        ),
    ],
)
def test_refusals_say_why(worker: Worker, body: str, grids: dict, reason: str) -> None:
    proto = model("g (int8[2,2] q) => (int8[2,2] y) { " + body + " }", **{"s": S, "z": Z} | grids)
    result, run = run_passes(proto, MergeQdq(), worker=worker)
    assert ops(result)["QuantizeLinear"] == 1
    assert any(reason in refusal.reason for refusal in run.journal.refusals)
