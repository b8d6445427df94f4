"""decide-conditions: a condition is constant when every run with its other value fails."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from graphopt.journal import Journal, Rewrite
from graphopt.runtime.worker import Worker
from graphopt_passes.analysis.contracts import RANKS
from graphopt_passes.exact.decide_conditions import DecideConditions
from graphopt_passes.exact.inline_constant_if import InlineConstantIf
from graphopt_passes.exact.simplify_shapes import SimplifyShapes
from tests.support import Feeds, assert_same, compute, ops, parse, run_passes

NAME = "decide-conditions"
FAILURES = (Fail, InvalidArgument, RuntimeException)

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
MORE_DIMS, FEWER_DIMS = "Unsqueeze(x, zero)", "Squeeze(x, one)"
OTHERS = [
    ("Gemm(v, b)", MORE_DIMS, {"x": (2, 3), "b": (3, 4)}),
    ("Gemm(a, v)", MORE_DIMS, {"x": (3, 4), "a": (2, 3)}),
    ("Conv(v, w)", MORE_DIMS, {"x": (1, 1, 4), "w": (1, 1, 2)}),
    ("ConvTranspose(v, w)", MORE_DIMS, {"x": (1, 1, 4), "w": (1, 1, 2)}),
    ("Transpose<perm = [1, 0]>(v)", MORE_DIMS, {"x": (2, 3)}),
    ("Gather<axis = 1>(v, zero)", FEWER_DIMS, {"x": (2, 1)}),
    ("Gather<axis = -2>(v, zero)", FEWER_DIMS, {"x": (2, 1)}),
    ("Squeeze(v, one)", FEWER_DIMS, {"x": (2, 1)}),
    ("Squeeze(v, one)", MORE_DIMS, {"x": (2, 1)}),
]


def recurrent(op_type: str, varied: int) -> tuple[str, str, dict[str, tuple[int, ...]]]:
    """A recurrent node whose input number ``varied`` is v; 3 steps of a batch of 1, 2 features, 1 unit."""
    n = GATES[op_type]
    shapes = [(3, 1, 2), (1, n, 2), (1, n, 1), (1, 2 * n), (1,), (1, 1, 1), (1, 1, 1), (1, 3)]
    names = ["v" if i == varied else f"i{i}" for i in range(len(RANKS[op_type]))]
    given = dict(zip(names, shapes, strict=False))
    given["x"] = given.pop("v")
    return f"{op_type}<hidden_size = 1>({', '.join(names)})", MORE_DIMS, given


RECURRENT = [recurrent(op_type, i) for op_type in GATES for i in RANKS[op_type]]


def feeds(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    random = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: np.ones(1, np.int32) if a.ndim == 1 else a for name, a in random.items()}


def choice(call: str, bad: str, given: Feeds) -> str:
    """A node that is given v, which is x or has a rank that the node does not take."""
    types = {np.dtype(np.float32): "float", np.dtype(np.int32): "int32"}
    inputs = ", ".join(f"{types[a.dtype]}{list(a.shape)} {name}" for name, a in given.items())
    return f"""g (bool c, {inputs}) => (float[m] y) <int64[1] zero = {{0}}, int64[1] one = {{1}},
            int64[1] last = {{-1}}>
        {{ v = If(c) <then_branch = t () => (float[] p) {{ p = Identity(x) }},
                     else_branch = e () => (float[] p) {{ p = {bad} }}>
          r = {call}
          y = Reshape(r, last) }}"""


@pytest.mark.parametrize(("call", "bad", "shapes"), [*OTHERS, *RECURRENT])
def test_a_rank_that_an_operator_refuses_decides(
    worker: Worker, call: str, bad: str, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    given = feeds(shapes)
    text = choice(call, bad, given)
    proto = parse(text.replace("float[] p", "int32[] p") if given["x"].dtype == np.int32 else text)
    with pytest.raises(FAILURES):
        compute(proto, given | {"c": np.array(False)})
    model, run = run_passes(proto, DecideConditions(), InlineConstantIf(), worker=worker)
    assert ops(model)["If"] == 0
    assert run.journal.counts()[NAME] == 1
    assert_same(proto, model, given | {"c": np.array(True)})


SHAPES = {"x": (2, 3, 1), "w": (1, 4, 3), "r": (1, 4, 1)}
SQUEEZED = """<int64[1] zero = {0}, int64[1] one = {1}, int64[1] last = {-1}, int64 two = {2}>
        { t = Shape<start = 2>(x)
          c = Equal(t, one)
          s = If(c) <then_branch = t1 () => (float[] p) { p = Squeeze(x, last) },
                     else_branch = e1 () => (float[] p) { p = Identity(x) }>"""
LSTM = "u = Unsqueeze(s, zero) o, h = LSTM<hidden_size = 1>(u, w, r) y = Reshape(o, last) }"
INPUTS = "g (float[n, 3, k] x, float[1, 4, 3] w, float[1, 4, 1] r)"


def test_a_squeeze_that_an_lstm_needs_is_certain(worker: Worker) -> None:
    proto = parse(f"{INPUTS} => (float[m] y) {SQUEEZED} {LSTM}")
    model, run = run_passes(proto, DecideConditions(), InlineConstantIf(), worker=worker)
    assert run.journal.rewrites[0] == Rewrite(NAME, "c")
    assert ops(model)["If"] == 0
    assert_same(proto, model, feeds(SHAPES))
    with pytest.raises(FAILURES):
        compute(proto, feeds(SHAPES | {"x": (2, 3, 2)}))


def test_a_supposition_is_followed_through_other_ifs(worker: Worker) -> None:
    """With s of rank 3, an If that depends on its rank is decided, and u gets rank 5."""
    proto = parse(
        f"""{INPUTS} => (float[m] y) {SQUEEZED}
          dims = Shape(s) rank = Size(dims) flat = Equal(rank, two) batched = Not(flat)
          b = If(batched) <then_branch = t2 () => (float[] q) {{ q = Unsqueeze(s, zero) }},
                           else_branch = e2 () => (float[] q) {{ q = Identity(s) }}>
          {LSTM.replace("(s,", "(b,")}"""
    )
    passes = SimplifyShapes(), DecideConditions(), InlineConstantIf()
    model, _ = run_passes(proto, *passes, worker=worker)
    assert ops(model)["If"] == 0
    assert_same(proto, model, feeds(SHAPES))


def test_a_failure_inside_the_taken_branch_counts(worker: Worker) -> None:
    """Where c is false, s and the second branch that c takes cannot run together."""
    proto = parse(
        f"""{INPUTS} => (float[m] y) {SQUEEZED}
          o = If(c) <then_branch = t2 () => (float[] q) {{ q = Neg(s) }},
                     else_branch = e2 () => (float[] q) {{ q = Transpose<perm = [1, 0]>(s) }}>
          y = Reshape(o, last) }}"""
    )
    model, _ = run_passes(proto, DecideConditions(), InlineConstantIf(), worker=worker)
    assert ops(model)["If"] == 0
    assert_same(proto, model, feeds(SHAPES))


def test_inside_a_branch_only_its_own_uses_are_decided(worker: Worker) -> None:
    proto = parse(
        """g (bool d, bool c, float[2, 3] x) => (float[m] y, bool z)
        <int64[1] zero = {0}, int64[1] last = {-1}>
        { o = If(d) <then_branch = t () => (float[] p) {
              v = If(c) <then_branch = t2 () => (float[] q) { q = Identity(x) },
                         else_branch = e2 () => (float[] q) { q = Unsqueeze(x, zero) }>
              p = Transpose<perm = [1, 0]>(v) },
            else_branch = e () => (float[] p) { p = Neg(x) }>
          y = Reshape(o, last)
          z = Not(c) }"""
    )
    model, _ = run_passes(proto, DecideConditions(), InlineConstantIf(), worker=worker)
    assert ops(model)["If"] == 1
    for d, c in ((True, True), (False, True), (False, False)):
        assert_same(proto, model, {"d": np.array(d), "c": np.array(c)} | feeds({"x": (2, 3)}))


def test_a_failure_around_the_if_that_holds_the_branch_counts(worker: Worker) -> None:
    """While the inner If runs, the outer one is its then branch, so that v is what Transpose is given."""
    proto = parse(
        """g (bool d, bool c, float[2, 3] x) => (float[m] y) <int64[1] zero = {0}, int64[1] last = {-1}>
        { o = If(d) <then_branch = t () => (float[] p) {
              v = If(c) <then_branch = t2 () => (float[] q) { q = Identity(x) },
                         else_branch = e2 () => (float[] q) { q = Unsqueeze(x, zero) }>
              p = Neg(v) },
            else_branch = e () => (float[] p) { p = Squeeze(x) }>
          turned = Transpose<perm = [1, 0]>(o)
          y = Reshape(turned, last) }"""
    )
    model, _ = run_passes(proto, DecideConditions(), InlineConstantIf(), worker=worker)
    assert ops(model)["If"] == 1
    for d, c in ((True, True), (False, True), (False, False)):
        assert_same(proto, model, {"d": np.array(d), "c": np.array(c)} | feeds({"x": (2, 3)}))


def stays(text: str, worker: Worker, *, keep: str = "", journal: Journal | None = None) -> list[str]:
    """The reasons why no condition was decided."""
    model, run = run_passes(parse(text), DecideConditions(), worker=worker, keep=keep, journal=journal)
    assert not run.journal.rewrites
    assert ops(model)["If"] >= 1
    return [refusal.reason for refusal in run.journal.refusals]


BOTH = ["nothing proves that one of the branches makes the model fail"]


def test_two_branches_that_may_succeed_stay(worker: Worker) -> None:
    assert stays(f"{INPUTS} => (float[m] y) {SQUEEZED} o = Relu(s) y = Reshape(o, last) }}", worker) == BOTH


def test_a_failure_inside_another_undecided_branch_does_not_count(worker: Worker) -> None:
    text = f"""{INPUTS.replace("(float", "(bool d, float", 1)} => (float[m] y) {SQUEEZED}
        o = If(d) <then_branch = t2 () => (float[] q) {{ q = Transpose<perm = [1, 0]>(s) }},
                   else_branch = e2 () => (float[] q) {{ q = Neg(s) }}>
        y = Reshape(o, last) }}"""
    assert stays(text, worker) == BOTH


def test_a_failure_that_no_output_needs_does_not_count(worker: Worker) -> None:
    text = f"{INPUTS} => (float[m] z) {SQUEEZED} o2 = Relu(s) z = Reshape(o2, last) {LSTM}"
    assert stays(text, worker) == BOTH


def test_a_failure_for_one_output_of_an_if_that_nobody_uses_does_not_count(worker: Worker) -> None:
    text = f"""{INPUTS.replace("(float", "(bool d, float", 1)} => (float[m] z) {SQUEEZED}
        turned = Transpose<perm = [1, 0]>(s)
        o, rest = If(d) <
            then_branch = t2 () => (float[] q, float[] t3) {{ q = Neg(s) t3 = Neg(turned) }},
            else_branch = e2 () => (float[] q, float[] t4) {{ q = Abs(s) t4 = Abs(turned) }}>
        z = Reshape(o, last) }}"""
    assert stays(text, worker) == BOTH


def test_one_iteration_says_nothing_about_what_surrounds_a_loop(worker: Worker) -> None:
    text = """g (float[2, 3] x, bool[4] flags) => (float[m] y)
        <int64 times = {4}, int64[1] zero = {0}, int64[1] minus = {-1}>
        { on = Constant<value = bool {1}>()
          all = Loop(times, on) <body = b (int64 i, bool go) => (bool more, float[] v) {
              more = Identity(go)
              c = Gather(flags, i)
              v = If(c) <then_branch = t () => (float[] q) { q = Identity(x) },
                         else_branch = e () => (float[] q) { q = Unsqueeze(x, zero) }> }>
          turned = Transpose<perm = [2, 1, 0]>(all)
          y = Reshape(turned, minus) }"""
    assert stays(text, worker) == BOTH


def test_branches_that_both_fail_stay(worker: Worker) -> None:
    text = choice("Transpose<perm = [0, 1, 2, 3]>(v)", MORE_DIMS, feeds({"x": (2, 3)}))
    reasons = stays(text, worker)
    assert reasons[0].startswith("both branches make the model fail")


def test_kept_and_left_out_conditions_stay(worker: Worker) -> None:
    text = f"{INPUTS} => (float[m] y) {SQUEEZED} {LSTM}"
    assert stays(text, worker, keep="If") == ["to be kept (--keep)"]
    assert stays(text, worker, journal=Journal(left_out=frozenset({Rewrite(NAME, "c")}))) == []
