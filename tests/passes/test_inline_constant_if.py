"""inline-constant-if: a branch takes the place of its If, names, initializers and outputs intact."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.journal import Journal, Rewrite
from graphopt.runtime.worker import Worker
from graphopt_passes.exact.inline_constant_if import InlineConstantIf
from tests.support import assert_same, ops, parse, run_passes

X = {"x": np.array([1, -2], np.float32)}
NAME = "inline-constant-if"


def branches(condition: str) -> str:
    return f"""g (float[2] x) => (float[2] y) <bool c = {{{condition}}}>
        {{ a = Neg(x)
          z = If(c) <
            then_branch = t () => (float[2] p) <float[2] w = {{5, 6}}> {{ b = Abs(a) p = Add(b, w) }},
            else_branch = e () => (float[2] p) {{ b = Exp(a) p = Mul(b, x) }}>
          y = Relu(z) }}"""


@pytest.mark.parametrize(
    ("condition", "expected"),
    [("1", {"Neg": 1, "Abs": 1, "Add": 1, "Relu": 1}), ("0", {"Neg": 1, "Exp": 1, "Mul": 1, "Relu": 1})],
)
def test_the_branch_that_is_taken_stays(worker: Worker, condition: str, expected: dict[str, int]) -> None:
    proto = parse(branches(condition))
    model, run = run_passes(proto, InlineConstantIf(), worker=worker)
    assert ops(model) == expected
    assert run.journal.rewrites == [Rewrite(NAME, "z")]
    assert_same(proto, model, X)


def test_names_that_sibling_branches_share_do_not_clash(worker: Worker) -> None:
    proto = parse(
        """g (bool d, float[2] x) => (float[2] y) <bool c = {1}>
        { z = If(c) <then_branch = t () => (float[2] p) { b = Abs(x) p = Neg(b) },
                     else_branch = e () => (float[2] p) { b = Exp(x) p = Neg(b) }>
          y = If(d) <then_branch = t2 () => (float[2] p) { b = Sqrt(z) p = Neg(b) },
                     else_branch = e2 () => (float[2] p) { b = Abs(z) p = Abs(b) }> }"""
    )
    model, _ = run_passes(proto, InlineConstantIf(), worker=worker)
    assert ops(model)["If"] == 1
    for flag in (True, False):
        assert_same(proto, model, X | {"d": np.array(flag)})


def test_nested_ifs_are_inlined_together(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x) => (float[2] y) <bool c = {1}, bool d = {0}>
        { y = If(c) <then_branch = t () => (float[2] p) {
              p = If(d) <then_branch = t2 () => (float[2] q) { q = Abs(x) },
                         else_branch = e2 () => (float[2] q) { q = Neg(x) }> },
            else_branch = e () => (float[2] p) { p = Exp(x) }> }"""
    )
    model, run = run_passes(proto, InlineConstantIf(), worker=worker)
    assert ops(model) == {"Neg": 1}
    assert len(run.journal.rewrites) == 2
    assert_same(proto, model, X)


def test_one_branch_value_for_two_graph_outputs_keeps_both_names(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x) => (float[2] y, float[2] z) <bool c = {1}>
        { y, z = If(c) <then_branch = t () => (float[2] p, float[2] q) { p = Abs(x) q = Identity(p) },
                        else_branch = e () => (float[2] p, float[2] q) { p = Exp(x) q = Neg(x) }> }"""
    )
    model, _ = run_passes(proto, InlineConstantIf(), worker=worker)
    assert [value.name for value in model.ir.graph.outputs] == ["y", "z"]
    assert_same(proto, model, X)


def test_a_branch_initializer_as_output_is_handed_on(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x) => (float[2] y) <bool c = {1}>
        { y = If(c) <then_branch = t () => (float[2] w) <float[2] w = {5, 6}> { unused = Abs(x) },
                     else_branch = e () => (float[2] p) { p = Exp(x) }> }"""
    )
    model, _ = run_passes(proto, InlineConstantIf(), worker=worker)
    assert ops(model)["If"] == 0
    assert_same(proto, model, X)


def test_an_if_inside_a_function_is_inlined(worker: Worker) -> None:
    proto = parse(
        "g (float[2] x) => (float[2] y) { y = local.f(x) }",
        functions="""<domain: "local", opset_import: ["" : 17]> f (x) => (y) {
            c = Constant <value = bool {1}> ()
            y = If(c) <then_branch = t () => (float[2] p) { p = Abs(x) },
                       else_branch = e () => (float[2] p) { p = Exp(x) }> }""",
    )
    model, _ = run_passes(proto, InlineConstantIf(), worker=worker)
    assert ops(model) == {"f": 1, "Abs": 1}
    assert_same(proto, model, X)


def test_a_condition_that_is_not_constant_stays(worker: Worker) -> None:
    text = (
        branches("1")
        .replace("(float[2] x) =>", "(float[2] x, bool c = {1}) =>")
        .replace(" <bool c = {1}>", "")
    )
    model, run = run_passes(parse(text), InlineConstantIf(), worker=worker)
    assert ops(model)["If"] == 1
    assert not run.journal.rewrites


def test_kept_and_left_out_ifs_stay(worker: Worker) -> None:
    model, run = run_passes(parse(branches("1")), InlineConstantIf(), worker=worker, keep="If")
    assert ops(model)["If"] == 1
    assert [refusal.reason for refusal in run.journal.refusals] == ["to be kept (--keep)"]
    journal = Journal(left_out=frozenset({Rewrite(NAME, "z")}))
    model, _ = run_passes(parse(branches("1")), InlineConstantIf(), worker=worker, journal=journal)
    assert ops(model)["If"] == 1


def test_shapes_that_range_must_not_know_stay_hidden(worker: Worker) -> None:
    proto = parse(
        """g (int64[2] x) => (int64[n] y) <bool c = {1}>
        { a, b = If(c) <then_branch = t () => (int64[k] p, int64[m] q) { p, q = Split<num_outputs = 2>(x) },
                        else_branch = e () => (int64[k] p, int64[m] q) { p = Abs(x) q = Neg(x) }>
          one = Constant<value_int = 1>()
          y = Range(a, b, one) }""",
        opset=20,
    )
    model, run = run_passes(proto, InlineConstantIf(), worker=worker)
    assert ops(model)["If"] == 1
    assert "vector of one element" in next(iter(run.journal.refusals)).reason
    assert_same(proto, model, {"x": np.array([2, 5])})
