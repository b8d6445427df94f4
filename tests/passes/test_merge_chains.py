"""merge-chains: what cancels, what joins, and the near misses."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.worker import Worker
from graphopt_passes.exact.eliminate_dead_code import EliminateDeadCode
from graphopt_passes.exact.merge_chains import MergeChains, holds
from tests.support import assert_same, ops, parse, run_passes

X = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)}


def merged(worker: Worker, text: str, opset: int = 17) -> tuple[dict[str, int], list[str]]:
    """The operators that are left, and why others were not merged; outputs are compared."""
    proto = parse(text, opset)
    model, run = run_passes(proto, MergeChains(), EliminateDeadCode(), worker=worker)
    feeds = {i.name: FEEDS[i.type.tensor_type.elem_type] for i in proto.graph.input}
    assert_same(proto, model, feeds)
    return ops(model), [refusal.reason for refusal in run.journal.refusals]


FEEDS = {
    onnx.TensorProto.FLOAT: X["x"],
    onnx.TensorProto.INT64: np.arange(-12, 12).reshape(2, 3, 4) * 2**33 + 5,
    onnx.TensorProto.INT8: np.arange(-12, 12, dtype=np.int8).reshape(2, 3, 4),
    onnx.TensorProto.BOOL: np.arange(24).reshape(2, 3, 4) % 3 == 0,
}


@pytest.mark.parametrize(
    ("chain", "left"),
    [
        ("r = Transpose<perm = [1, 2, 0]>(x) y = Transpose<perm = [1, 0, 2]>(r)", {"Transpose": 1}),
        ("r = Transpose<perm = [1, 2, 0]>(x) u = Transpose<perm = [2, 0, 1]>(r) y = Neg(u)", {"Neg": 1}),
        ("r = Transpose(x) u = Transpose(r) y = Neg(u)", {"Neg": 1}),
        ("r = Transpose(x) y = Transpose<perm = [1, 0, 2]>(r)", {"Transpose": 1}),
        ("r = Reshape(x, s) y = Reshape(r, t)", {"Reshape": 1}),
        ("r = Flatten<axis = 2>(x) y = Reshape(r, t)", {"Reshape": 1}),
        ("r = Reshape(x, s) u = Reshape(r, o) y = Neg(u)", {"Neg": 1}),
        ("r = Unsqueeze(x, a1) y = Unsqueeze(r, a02)", {"Unsqueeze": 1}),
        ("r = Unsqueeze(x, a1) u = Squeeze(r, a1) y = Neg(u)", {"Neg": 1}),
        ("r = Cast<to = 11>(x) u = Cast<to = 10>(r) z = Neg(u) y = Cast<to = 1>(z)", {"Cast": 2, "Neg": 1}),
        ("r = Cast<to = 11>(x) u = Cast<to = 1>(r) y = Neg(u)", {"Neg": 1}),
        ("r = Neg(x) u = Neg(r) y = Abs(u)", {"Abs": 1}),
        ("r = Slice(x, one, big, one) y = Slice(r, zeros, ones, a02)", {"Slice": 1}),
        ("r = Slice(x, one, big, last) y = Slice(r, zero, one, one)", {"Slice": 1}),
    ],
)
def test_chains_merge(worker: Worker, chain: str, left: dict[str, int]) -> None:
    dims = "[a, b, c, d, e, f]" if "a02)" in chain and "Unsq" in chain else "[a, b, c]"
    text = f"""g (float[2, 3, 4] x) => (float{dims} y)
    <int64[2] s = {{6, 4}}, int64[3] t = {{4, -1, 3}}, int64[3] o = {{2, 3, 4}}, int64[1] a1 = {{1}},
     int64[2] a02 = {{0, 2}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] big = {{100}},
     int64[1] last = {{-1}}, int64[2] zeros = {{0, 0}}, int64[2] ones = {{1, 1}}> {{ {chain} }}"""
    assert merged(worker, text)[0] == left


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ("r = Reshape(x, s) y = Reshape(r, copy)", "copies a dim"),
        ("r = Cast<to = 6>(x) y = Cast<to = 1>(r)", "INT32 may lose what FLOAT holds"),
        ("r = Cast<to = 10>(x) y = Cast<to = 1>(r)", "FLOAT16 may lose what FLOAT holds"),
        ("r = Slice(x, one, big, one) y = Slice(r, one, big, one)", "both slice one axis"),
        ("r = Slice(x, one, big, one) q = Slice(r, one, big, last) y = Max(q, r)", "2 consumers"),
    ],
)
def test_near_misses_stay_and_say_why(worker: Worker, chain: str, why: str) -> None:
    chain = chain.replace("y = Max(q, r)", "m = ReduceMax(r) y = Max(q, m)")
    text = f"""g (float[2, 3, 4] x) => (float[a, b, c] y)
    <int64[2] s = {{6, 4}}, int64[3] copy = {{0, 2, 2}}, int64[1] one = {{1}}, int64[1] last = {{2}},
     int64[1] big = {{100}}> {{ {chain} }}"""
    _, reasons = merged(worker, text)
    assert any(why in reason for reason in reasons)


def test_integers_wrap_as_before(worker: Worker) -> None:
    text = "g (int8[2, 3, 4] x) => (uint8[2, 3, 4] y) { r = Cast<to = 6>(x) y = Cast<to = 2>(r) }"
    assert merged(worker, text)[0] == {"Cast": 1}
    text = "g (int64[2, 3, 4] x) => (int64[2, 3, 4] y) { r = Cast<to = 6>(x) y = Cast<to = 7>(r) }"
    assert merged(worker, text)[0] == {"Cast": 2}


def test_an_inner_node_that_others_use_stays_for_them(worker: Worker) -> None:
    text = """g (bool[2, 3, 4] x) => (bool[2, 3, 4] y, bool[2, 3, 4] n)
    { n = Not(x) m = Not(n) y = Or(m, n) }"""
    assert merged(worker, text)[0] == {"Not": 1, "Or": 1}


def test_an_output_that_would_become_an_input_keeps_its_node(worker: Worker) -> None:
    text = "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { n = Neg(x) y = Neg(n) }"
    left, reasons = merged(worker, text)
    assert left == {"Neg": 2}
    assert "would become an input" in reasons[0]


def test_a_capture_reaches_through_the_branch(worker: Worker) -> None:
    proto = parse(
        """g (bool c, float[2, 3, 4] x) => (float[a, b, d] y) { t = Transpose<perm = [1, 0, 2]>(x)
        y = If(c) <then_branch = k () => (float[2, 3, 4] p) { u = Transpose<perm = [1, 0, 2]>(t) p = Neg(u) },
                   else_branch = e () => (float[3, 2, 4] q) { q = Identity(t) }> }"""
    )
    model, _ = run_passes(proto, MergeChains(), worker=worker)
    assert ops(model) == {"Transpose": 1, "If": 1, "Neg": 1, "Identity": 1}
    for condition in (True, False):
        assert_same(proto, model, X | {"c": np.array(condition)})


def test_holds_is_about_every_value() -> None:
    kinds = ir.DataType
    assert (
        holds(kinds.FLOAT, kinds.FLOAT16)
        and holds(kinds.FLOAT, kinds.INT16)
        and holds(kinds.INT32, kinds.BOOL)
    )
    assert not holds(kinds.FLOAT16, kinds.BFLOAT16) and not holds(kinds.BFLOAT16, kinds.FLOAT16)
    assert not holds(kinds.FLOAT, kinds.INT32) and not holds(kinds.UINT16, kinds.INT8)
    assert not holds(kinds.INT8, kinds.UINT8) and not holds(kinds.BOOL, kinds.UINT8)
    assert not holds(kinds.FLOAT, kinds.FLOAT8E4M3FN)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.permutations(range(3)), min_size=1, max_size=4), st.booleans())
def test_any_chain_of_transposes_is_at_most_one(worker: Worker, perms: list[list[int]], used: bool) -> None:
    lines = [f"v{i + 1} = Transpose<perm = {perm}>(v{i})" for i, perm in enumerate(perms)]
    body = f"v0 = Abs(x) {' '.join(lines)} y = Neg(v{len(perms)}) {'z = Neg(v1)' if used else 'z = Neg(v0)'}"
    proto = parse(f"g (float[2, 3, 4] x) => (float[a, b, c] y, float[d, e, f] z) {{ {body} }}")
    model, _ = run_passes(proto, MergeChains(), EliminateDeadCode(), worker=worker)
    assert ops(model)["Transpose"] <= (2 if used else 1)
    assert_same(proto, model, X)
