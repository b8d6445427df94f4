"""eliminate-common-subexpressions: equal work is done once; what only looks equal is not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.journal import Journal
from graphopt.runtime.worker import Worker
from graphopt_passes.exact.eliminate_common_subexpressions import EliminateCommonSubexpressions
from tests.support import assert_same, ops, parse, run_passes

X = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
Cse = EliminateCommonSubexpressions


def test_equal_chains_merge_in_one_sweep(worker: Worker) -> None:
    proto = parse(
        """g (float[2, 4] x) => (float[2, 4] y)
        { a = Exp(x) b = Add(a, x) c = Exp(x) d = Add(x, c) y = Mul(b, d) }"""
    )
    model, run = run_passes(proto, Cse(), worker=worker)
    assert ops(model) == {"Exp": 1, "Add": 1, "Mul": 1}
    assert [rewrite.value for rewrite in run.journal.rewrites] == ["c", "d"]
    assert_same(proto, model, X)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Softmax<axis = 0>(x)", "Softmax<axis = 1>(x)"),
        ("Sub(x, e)", "Sub(e, x)"),
        ("Cast<to = 1>(x)", "Cast<to = 11>(x)"),
        ("LeakyRelu<alpha = 0.0>(x)", "LeakyRelu<alpha = -0.0>(x)"),
        ("RandomNormalLike(x)", "RandomNormalLike(x)"),
        ("Clip(x, l)", "Clip(x, , l)"),
    ],
)
def test_what_differs_stays(worker: Worker, one: str, other: str) -> None:
    proto = parse(
        f"""g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) <float l = {{1}}>
        {{ e = Exp(x) a = {one} b = {other} c = Cast<to = 1>(b) y = Neg(a) z = Neg(c) }}"""
    )
    model, _ = run_passes(proto, Cse(), worker=worker)
    assert sum(ops(model).values()) == 6


def test_equal_constants_merge(worker: Worker) -> None:
    proto = parse(
        """g (float[2, 4] x) => (float[2, 4] y)
        { a = Constant<value = float[1] {2}>() b = Constant<value = float[1] {2}>()
          c = Constant<value = int32[1] {2}>() d = Cast<to = 1>(c)
          e = Mul(a, b) f = Mul(d, e) y = Mul(x, f) }"""
    )
    model, run = run_passes(proto, Cse(), worker=worker)
    assert [rewrite.value for rewrite in run.journal.rewrites] == ["b"]
    assert_same(proto, model, X)


def test_an_output_keeps_its_name_and_two_outputs_stay_two(worker: Worker) -> None:
    proto = parse(
        """g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z)
        { a = Exp(x) b = Neg(a) y = Exp(x) z = Exp(x) }"""
    )
    model, run = run_passes(proto, Cse(), worker=worker)
    assert ops(model) == {"Exp": 2, "Neg": 1}
    assert "both graph outputs" in next(iter(run.journal.refusals)).reason
    assert_same(proto, model, X)


def test_all_outputs_of_a_node_are_replaced(worker: Worker) -> None:
    proto = parse(
        """g (float[2, 4] x) => (float[2, 2] y, float[2, 2] z)
        { a, b = Split<axis = 1>(x) c, d = Split<axis = 1>(x) y = Add(a, d) z = Sub(b, c) }"""
    )
    model, _ = run_passes(proto, Cse(), worker=worker)
    assert ops(model) == {"Split": 1, "Add": 1, "Sub": 1}
    assert_same(proto, model, X)


def test_a_branch_reuses_what_came_before_it_but_not_what_a_sibling_makes(worker: Worker) -> None:
    proto = parse(
        """g (bool c, float[2, 4] x) => (float[2, 4] y, float[2, 4] z) { e = Exp(x)
          y = If(c) <then_branch = t () => (float[2, 4] p) { f = Exp(x) h = Neg(x) p = Add(f, h) },
                     else_branch = k () => (float[2, 4] q) { h = Neg(x) q = Exp(x) }>
          z = Neg(e) }"""
    )
    model, run = run_passes(proto, Cse(), worker=worker)
    assert ops(model) == {"Exp": 2, "If": 1, "Neg": 3, "Add": 1}
    assert "another graph" in next(iter(run.journal.refusals)).reason
    for condition in (True, False):
        assert_same(proto, model, X | {"c": np.array(condition)})


def test_functions_are_deterministic_if_their_bodies_are(worker: Worker) -> None:
    functions = """
    <domain: "local", opset_import: ["" : 17]> pure (v) => (r) { a = Exp(v) b = Exp(v) r = Add(a, b) }
    <domain: "local", opset_import: ["" : 17]> dice (v) => (r) { n = RandomNormalLike(v) r = Add(v, n) }
    """
    proto = parse(
        """g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z)
        { a = local.pure(x) b = local.pure(x) y = Add(a, b)
          c = local.dice(x) d = local.dice(x) z = Add(c, d) }""",
        functions=functions,
    )
    model, _ = run_passes(proto, Cse(), worker=worker)
    assert ops(model) == {"pure": 1, "dice": 2, "Exp": 1, "Add": 4, "RandomNormalLike": 1}


def test_kept_nodes_and_the_limit_are_respected(worker: Worker) -> None:
    proto = parse(
        """g (float[2, 4] x) => (float[2, 4] y)
        { a = Exp(x) b = Exp(x) c = Neg(x) d = Neg(x) e = Neg(x) y = Sum(a, b, c, d, e) }"""
    )
    model, _ = run_passes(proto, Cse(), worker=worker, keep="Exp", journal=Journal(limit=1))
    assert ops(model) == {"Exp": 2, "Neg": 2, "Sum": 1}


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Random graphs of few operators, so that many nodes are equal."""
    lines, values = [], ["x"]
    for index in range(draw(st.integers(2, 14))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        node = draw(st.sampled_from([f"Abs({a})", f"Add({a}, {b})", f"Sub({a}, {b})", f"Max({a}, {b})"]))
        lines.append(f"v{index} = {node}")
        values.append(f"v{index}")
    outputs = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=3, unique=True))
    declared = ", ".join(f"float[2, 4] {name}" for name in outputs)
    return parse(f"g (float[2, 4] x) => ({declared}) {{ {' '.join(lines)} }}")


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_random_graphs_compute_the_same(worker: Worker, proto: onnx.ModelProto) -> None:
    model, _ = run_passes(proto, Cse(), worker=worker)
    assert_same(proto, model, X)
