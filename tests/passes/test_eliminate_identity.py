"""eliminate-identity: what returns its input goes; what only nearly does stays and says why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.journal import Journal
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt_passes.exact.eliminate_identity import EliminateIdentity
from tests.support import assert_same, ops, parse, run_passes

VALUES = np.array([[0.0, -0.0, 1.5], [np.inf, -np.inf, np.nan]], np.float32)
CONSTANTS = """
    <float one = {1}, float[1] one1 = {1}, float[1, 1, 1] one3 = {1}, float zero = {0}, float minus = {-0.0},
     float[2, 3] ones = {1, 1, 1, 1, 1, 1}, float two = {2}, float half = {0.5},
     int64[2] same = {2, 3}, int64[2] copy = {0, 0}, int64[2] flip = {3, 2}, int64[1] flat = {6},
     int64[2] i11 = {1, 1}, int64[2] i12 = {1, 2}, int64[1] i0 = {0}, int64[1] i1 = {1},
     int64[1] end = {100}, int64[1] back = {-1}, int64[1] start = {-1000},
     int64[4] nopad = {0, 0, 0, 0}, int64[4] shift = {1, 0, -1, 0},
     bool yes = {1}, bool no = {0}>
"""


def left(worker: Worker, body: str, opset: int = 17) -> tuple[list[str], Run]:
    """What is left of a body that makes r from a, between two nodes that stay."""
    text = f"g (float[2, 3] x) => (float[m, n] y) {CONSTANTS} {{ a = Exp(x) {body} y = Sign(r) }}"
    proto = parse(text, opset)
    model, run = run_passes(proto, EliminateIdentity(), worker=worker)
    assert_same(proto, model, {"x": VALUES})
    found = ops(model)
    assert found.pop("Exp") == found.pop("Sign") == 1
    return sorted(found.elements()), run


@pytest.mark.parametrize(
    "body",
    [
        "r = Identity(a)",
        "r = Dropout(a)",
        "r = Dropout(a, half, no)",
        "r = Cast<to = 1>(a)",
        "r = CastLike(a, x)",
        "r = Reshape(a, same)",
        "r = Reshape(a, copy)",
        "r = Expand(a, i11)",
        "r = Expand(a, same)",
        "r = Flatten<axis = 1>(a)",
        "r = Tile(a, i11)",
        "r = Transpose<perm = [0, 1]>(a)",
        "r = Pad(a, nopad)",
        'r = Pad<mode = "edge">(a, nopad)',
        "r = Slice(a, i0, end)",
        "r = Slice(a, start, end, back)",
        "r = Concat<axis = 0>(a)",
        "r = Sum(a)",
        "r = Max(a)",
        "r = Mul(a, one)",
        "r = Mul(ones, a)",
        "r = Mul(a, one1)",
        "r = Div(a, one)",
        "r = Pow(a, one)",
        "r = Sub(a, zero)",
        "r = Add(minus, a)",
        "r = Where(yes, a, one)",
        "r = Where(no, one, a)",
        "r = Identity(a) ",
    ],
)
def test_what_returns_its_input_goes(worker: Worker, body: str) -> None:
    assert left(worker, body)[0] == []


@pytest.mark.parametrize(
    ("body", "stays"),
    [
        ("d = Dropout(a, half, yes) s = Size(d) f = Cast<to = 1>(s) r = Mul(a, f)", "Dropout"),
        ("c = Cast<to = 11>(a) d = Neg(c) r = Cast<to = 1>(d)", "Cast"),
        ("r = Reshape(a, flip)", "Reshape"),
        ("r = Tile(a, i12)", "Tile"),
        ("r = Transpose(a)", "Transpose"),
        ("r = Pad(a, shift)", "Pad"),
        ("r = Slice(a, i1, end)", "Slice"),
        ("r = Slice(a, back, start, i1, back)", "Slice"),
        ("r = Mul(a, two)", "Mul"),
        ("r = Div(one, a)", "Div"),
        ("r = Pow(one, a)", "Pow"),
        ("r = Sub(zero, a)", "Sub"),
        ("r = Add(a, zero)", "Add"),
        ("r = Sub(a, minus)", "Sub"),
        ("s = Mul(a, one3) r = Squeeze(s, i0)", "Mul"),
    ],
)
def test_what_does_not_stays(worker: Worker, body: str, stays: str) -> None:
    assert stays in left(worker, body)[0]


def test_broadcasting_by_one_is_refused(worker: Worker) -> None:
    _, run = left(worker, "s = Mul(a, one3) r = Squeeze(s, i0)")
    assert "may broadcast" in next(iter(run.journal.refusals)).reason


def test_a_cast_like_of_a_known_type_becomes_a_cast(worker: Worker) -> None:
    proto = parse("g (float[2] x, float16[2] t) => (float16[2] y) { y = CastLike(x, t) }")
    model, _ = run_passes(proto, EliminateIdentity(), worker=worker)
    assert ops(model) == {"Cast": 1}
    assert_same(proto, model, {"x": VALUES[0, :2], "t": np.zeros(2, np.float16)})


def test_integers_lose_plus_zero(worker: Worker) -> None:
    proto = parse("g (int64[2] x) => (int64[2] y) <int64 z = {0}> { a = Neg(x) b = Add(z, a) y = Neg(b) }")
    model, _ = run_passes(proto, EliminateIdentity(), worker=worker)
    assert ops(model) == {"Neg": 2}


def test_a_used_mask_keeps_the_dropout(worker: Worker) -> None:
    proto = parse("g (float[2] x) => (float[2] y, bool[2] m) { a = Neg(x) b, m = Dropout(a) y = Neg(b) }")
    model, run = run_passes(proto, EliminateIdentity(), worker=worker)
    assert ops(model) == {"Neg": 2, "Dropout": 1}
    assert "'m' is used" in next(iter(run.journal.refusals)).reason


@pytest.mark.parametrize("opset", [6, 7, 10])
def test_old_dropouts_train_only_until_opset_6(worker: Worker, opset: int) -> None:
    model = Model.of(parse("g (float[2] x) => (float[2] y) { a = Neg(x) b = Dropout(a) y = Neg(b) }", opset))
    EliminateIdentity().apply(model, run_passes(parse("g (float[2] x) => (float[2] x) {}"), worker=worker)[1])
    assert ("Dropout" in ops(model)) == (opset < 7)


def test_symbolic_dims_that_are_equal_are_enough(worker: Worker) -> None:
    proto = parse(
        """g (float[n, 3] x) => (float[n, 3] y) { s = Shape(x) a = Neg(x) b = Reshape(a, s) c = Expand(b, s)
        y = Neg(c) }"""
    )
    model, _ = run_passes(proto, EliminateIdentity(), worker=worker)
    assert ops(model)["Reshape"] == ops(model)["Expand"] == 0
    assert_same(proto, model, {"x": VALUES})


@pytest.mark.parametrize(
    ("attributes", "scale", "gone"),
    [("", 1.0, True), (', coordinate_transformation_mode = "asymmetric"', 1.0, True), ("", 1.1, False)],
)
def test_a_resize_by_one(worker: Worker, attributes: str, scale: float, gone: bool) -> None:
    proto = parse(
        f"""g (float[1, 1, 3, 3] x) => (float[1, 1, 3, 3] y) <float[4] s = {{1, 1, {scale}, 1}}>
        {{ a = Neg(x) b = Resize<mode = "linear"{attributes}>(a, , s) y = Neg(b) }}"""
    )
    model, _ = run_passes(proto, EliminateIdentity(), worker=worker)
    assert (ops(model)["Resize"] == 0) == gone
    assert_same(proto, model, {"x": np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)})


def test_a_region_of_ones_is_no_scale(worker: Worker) -> None:
    proto = parse(
        """g (float[1, 1, 3, 3] x) => (float[1, 1, 5, 3] y)
        <float[8] roi = {1, 1, 1, 1, 1, 1, 1, 1}, int64[4] sizes = {1, 1, 5, 3}>
        { a = Neg(x) b = Resize<mode = "linear">(a, roi, , sizes) y = Neg(b) }"""
    )
    model, _ = run_passes(proto, EliminateIdentity(), worker=worker)
    assert ops(model) == {"Neg": 2, "Resize": 1}


def test_pools_of_one_element(worker: Worker) -> None:
    text = """g (float[1, 1, 3, 3] x) => (float[1, 1, a, b] y) {{ a = Neg(x)
    b = MaxPool<kernel_shape = [1, 1]{}>(a) y = Neg(b) }}"""
    model, _ = run_passes(parse(text.format("")), EliminateIdentity(), worker=worker)
    assert ops(model) == {"Neg": 2}
    model, _ = run_passes(parse(text.format(", strides = [2, 2]")), EliminateIdentity(), worker=worker)
    assert ops(model) == {"Neg": 2, "MaxPool": 1}


def test_outputs_that_would_become_inputs_keep_their_identity(worker: Worker) -> None:
    proto = parse(
        """g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z, float[1] c, float[2, 3] t) <float[1] w = {1}>
        { y = Identity(x) c = Identity(w) a = Neg(x) z = Identity(a) t = Identity(a) }"""
    )
    model, run = run_passes(proto, EliminateIdentity(), worker=worker)
    assert ops(model) == {"Identity": 3, "Neg": 1}
    assert len(run.journal.refusals) == 3
    assert_same(proto, model, {"x": VALUES})


def test_identities_in_branches_and_functions(worker: Worker) -> None:
    functions = """<domain: "local", opset_import: ["" : 17]>
    f (v) => (r) { a = Identity(v) b = Exp(a) r = Identity(b) }"""
    proto = parse(
        """g (bool c, float[2, 3] x) => (float[2, 3] y) { u = local.f(x)
        y = If(c) <then_branch = t () => (float[2, 3] p) { k = Identity(u) p = Neg(k) },
                   else_branch = e () => (float[2, 3] q) { k = Abs(u) q = Identity(u) }> }""",
        functions=functions,
    )
    model, _ = run_passes(proto, EliminateIdentity(), worker=worker)
    assert ops(model) == {"f": 1, "Exp": 1, "If": 1, "Neg": 1, "Abs": 1, "Identity": 1}
    for condition in (True, False):
        assert_same(proto, model, {"x": VALUES, "c": np.array(condition)})


def test_kept_nodes_and_the_limit_are_respected(worker: Worker) -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Dropout(x) b = Sum(a) c = Sum(b) y = Neg(c) }")
    journal = Journal(limit=1)
    model, _ = run_passes(proto, EliminateIdentity(), worker=worker, keep="Dropout", journal=journal)
    assert ops(model) == {"Dropout": 1, "Sum": 1, "Neg": 1}


CHOICES = (
    "Identity({})",
    "Mul({}, one)",
    "Mul({}, one3)",
    "Reshape({}, same)",
    "Reshape({}, flat)",
    "Transpose({})",
    "Cast<to = 1>({})",
    "Add({}, zero)",
    "Relu({})",
    "Slice({}, i0, end)",
    "Expand({}, i11)",
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(CHOICES), min_size=1, max_size=8))
def test_random_chains_compute_the_same(worker: Worker, chain: list[str]) -> None:
    lines = [f"v{i + 1} = {text.format(f'v{i}')}" for i, text in enumerate(chain)]
    body = f"v0 = Neg(x) {' '.join(lines)} y = Reshape(v{len(chain)}, flat)"
    proto: onnx.ModelProto = parse(f"g (float[2, 3] x) => (float[6] y) {CONSTANTS} {{ {body} }}")
    model, _ = run_passes(proto, EliminateIdentity(), worker=worker)
    assert_same(proto, model, {"x": VALUES})
