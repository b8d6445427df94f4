"""Weights in half precision: stored once, widened at load, and left alone where half would lose too much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt import registry
from graphopt.errors import UsageError
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.precision import Outcome, Task
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.weights.store_half import HALVES, StoreHalf, store
from tests.support import assert_same, compute, ops, run_passes, serialized
from tools import models

RNG = np.random.default_rng(0)
HEAD = '<ir_version: 8, opset_import: ["" : {opset}]>'


def build(text: str, opset: int = 17, functions: str = "", **arrays: np.ndarray) -> onnx.ModelProto:
    head = HEAD.format(opset=opset) if not functions else HEAD.format(opset=f'{opset}, "local" : 1')
    proto = parser.parse_model(f"{head} {text}\n{functions}")
    proto.graph.initializer.extend(numpy_helper.from_array(data, name) for name, data in arrays.items())
    onnx.checker.check_model(proto)
    return proto


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def rounded(proto: onnx.ModelProto, kind: str = "fp16") -> onnx.ModelProto:
    """The model with weights as they are after rounding, in float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.nbytes > 128:
            half = array.astype(HALVES[kind].numpy).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    return copy


def stored(model: Model) -> dict[str, ir.DataType]:
    values = model.ir.graph.initializers.values()
    return {value.name or "": value.const_value.dtype for value in values if value.const_value is not None}


PRODUCT = "g (float[4, 64] x) => (float[4, 32] y) { p = MatMul (x, w)  y = Add (p, b) }"


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_product_computes_with_its_weights_rounded_once(kind: str, worker: Worker) -> None:
    proto = build(PRODUCT, w=normal(64, 32), b=normal(64)[:32].copy())
    model, _ = run_passes(proto, StoreHalf(type=kind), worker=worker)
    assert set(stored(model).values()) == {HALVES[kind].dtype, ir.DataType.FLOAT}  # b is too small
    assert ops(model) == {"MatMul": 1, "Add": 1, "Cast": 1}
    assert_same(rounded(proto, kind), model, {"x": normal(4, 64)})


def test_the_file_halves_and_the_runtime_folds_the_casts(worker: Worker, tmp_path: Path) -> None:
    proto = build(PRODUCT, w=normal(64, 32, scale=10), b=normal(32))
    before = Model.of(proto).file_size()
    model, _ = run_passes(proto, StoreHalf(), worker=worker)
    assert model.file_size() < 0.55 * before
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(serialized(model).SerializeToString(), options, ["CPUExecutionProvider"])
    assert "Cast" not in [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


BRANCHES = """
g (bool c, float[2, 64] x) => (float[2, 64] y) {
    y = If (c) <
        then_branch = one () => (float[2, 64] p) <float[64, 64] v> { p = MatMul (x, w) },
        else_branch = two () => (float[2, 64] q) {
            u = Constant <value_floats = [VALUES]> ()
            s = MatMul (x, w)
            q = Mul (s, u)
        }>
}
"""


def test_captured_weights_and_those_of_subgraphs_are_stored(worker: Worker) -> None:
    values = normal(64)
    text = BRANCHES.replace(" <float[64, 64] v>", "").replace("VALUES", ", ".join(map(repr, values.tolist())))
    proto = build(text, w=normal(64, 64))
    model, _ = run_passes(proto, StoreHalf(), worker=worker)
    assert ops(model)["Cast"] == 2
    assert set(stored(model).values()) == {ir.DataType.FLOAT16}
    expected = rounded(proto)
    node = expected.graph.node[0].attribute[1].g.node[0]
    node.attribute[0].floats[:] = values.astype(np.float16).astype(np.float32).tolist()
    for condition in (True, False):
        assert_same(expected, model, {"c": np.array(condition), "x": normal(2, 64)})


def test_equal_names_in_sibling_branches_stay_apart(worker: Worker) -> None:
    first, second = normal(64, 64), normal(64, 64)
    branch = "{}_branch = {} () => (float[2, 64] {}) {{ {} = MatMul (x, w) }}"
    text = "g (bool c, float[2, 64] x) => (float[2, 64] y) { y = If (c) <" + (
        branch.format("then", "one", "p", "p") + ", " + branch.format("else", "two", "q", "q") + "> }"
    )
    proto = parser.parse_model(f"{HEAD.format(opset=17)} {text}")
    for attribute, array in zip(proto.graph.node[0].attribute, (first, second), strict=True):
        attribute.g.initializer.append(numpy_helper.from_array(array, "w"))
    onnx.checker.check_model(proto)
    model, _ = run_passes(proto, StoreHalf(), worker=worker)
    assert sorted(stored(model).values()) == [ir.DataType.FLOAT16] * 2
    x = normal(2, 64)
    for condition, array in ((True, first), (False, second)):
        [found] = compute(serialized(model), {"c": np.array(condition), "x": x})
        np.testing.assert_allclose(
            found, x @ array.astype(np.float16).astype(np.float32), rtol=1e-5, atol=1e-5
        )


def test_constants_of_functions_are_stored(worker: Worker) -> None:
    values = ", ".join(map(repr, normal(64).tolist()))
    functions = (
        '<domain: "local", opset_import: ["" : 17]> twice (x) => (y)'
        f" {{ k = Constant <value_floats = [{values}]> () y = Mul (x, k) }}"
    )
    proto = build("g (float[64] x) => (float[64] y) { y = local.twice (x) }", functions=functions)
    model, _ = run_passes(proto, StoreHalf(), worker=worker)
    assert ops(model)["Cast"] == 1
    x = normal(64)
    assert_same(proto, model, {"x": x}, rtol=2.0**-10)
    assert not np.array_equal(compute(proto, {"x": x})[0], compute(serialized(model), {"x": x})[0])


def test_a_weight_that_several_nodes_read_is_stored_once(worker: Worker) -> None:
    nodes = "a = MatMul (x, w)  b = Gemm <transB = 1> (a, w)  y = Add (a, b)"
    text = f"g (float[4, 64] x) => (float[4, 64] y) {{ {nodes} }}"
    proto = build(text, w=normal(64, 64))
    model, _ = run_passes(proto, StoreHalf(), worker=worker)
    assert ops(model)["Cast"] == 1 and len(stored(model)) == 1
    assert_same(rounded(proto), model, {"x": normal(4, 64)})


def test_what_callers_may_override_stays(worker: Worker) -> None:
    text = "g (float[4, 64] x, float[64, 64] w) => (float[4, 64] y) { y = MatMul (x, w) }"
    proto = build(text, w=normal(64, 64))
    model, _ = run_passes(proto, StoreHalf(), worker=worker)
    assert stored(model) == {"w": ir.DataType.FLOAT}
    report = graphopt.optimize(proto, store="fp16", measure=False).report
    assert [(one.name, one.precision) for one in report.layers] == [("w", "float32")]
    assert any("callers may override it; if none does, use --freeze-init" in note for note in report.notes)


def test_a_type_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="no type 'bf17'; its types are fp16 and bf16"):
        registry.parse("store-half{type=bf17}")


def with_entry(value: float, *shape: int) -> np.ndarray:
    array = normal(*shape)
    array.flat[0] = value
    return array


REFUSED = {
    "beyond the range": (PRODUCT, with_entry(65520.0, 64, 32), "1 of 2,048 numbers are beyond the range"),
    "a mask": (PRODUCT, with_entry(-1e9, 64, 32), "1 of 2,048 numbers are beyond the range"),
    "all tiny": (PRODUCT, normal(64, 32, scale=1e-7), "too small for half precision"),
    "whole numbers": (
        "g (float[64, 32] x) => (float[64, 32] y) { y = Mul (x, w) }",
        np.arange(1024, 3072, dtype=np.float32).reshape(64, 32),
        "it holds whole numbers, of which 512 of 2,048 would become others",
    ),
    "a divisor": (
        "g (float[64, 32] x) => (float[64, 32] y) { y = Div (x, w) }",
        with_entry(1e-9, 64, 32),
        "1 of 2,048 numbers would lose digits or vanish",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_half_precision_cannot_hold_stays_and_is_named(case: str, worker: Worker) -> None:
    text, w, reason = REFUSED[case]
    arrays = {"w": w, "b": normal(32)} if "b" in text.split("{")[1].split() or "(p, b)" in text else {"w": w}
    model = Model.of(build(text, **arrays))
    reports = store(model, Run(CPU, worker), HALVES["fp16"])
    assert [(one.name, one.precision) for one in reports] == [("w", "float32")]
    assert reason in reports[0].reason
    assert stored(model)["w"] is ir.DataType.FLOAT


ACCEPTED = {
    "the largest": with_entry(65504.0, 64, 32),
    "rounds down to the largest": with_entry(65519.0, 64, 32),
    "whole numbers that it holds": np.arange(2048, dtype=np.float32).reshape(64, 32),
    "infinity": with_entry(-np.inf, 64, 32),
    "tiny ones among large": with_entry(1e-12, 64, 32),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_rounding_does_to_single_numbers_of_a_matrix_is_no_reason(case: str, worker: Worker) -> None:
    model = Model.of(build(PRODUCT, w=ACCEPTED[case], b=normal(32)))
    reports = store(model, Run(CPU, worker), HALVES["fp16"])
    assert [(one.name, one.precision) for one in reports] == [("w", "float16")]


def test_a_second_run_changes_nothing_and_no_exact_pass_folds_the_casts_back(
    worker: Worker, tmp_path: Path
) -> None:
    proto = build(
        "g (float[1, 8, 9, 9] x) => (float[1, 40, 9, 9] y)"
        " { c = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Add (c, b) }",
        w=normal(40, 8, 3, 3),
        b=normal(40).reshape(40, 1, 1),
    )
    first = graphopt.optimize(proto, tmp_path / "half.onnx", store="fp16", measure=False)
    assert stored(first.model)["w_float16"] is ir.DataType.FLOAT16
    second = graphopt.optimize(tmp_path / "half.onnx", tmp_path / "again.onnx", store="fp16", measure=False)
    assert not second.report.rewrites
    assert (tmp_path / "half.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_bf16_raises_an_opset_that_does_not_know_it(worker: Worker) -> None:
    model = Model.of(build(PRODUCT, opset=11, w=normal(64, 32), b=normal(32)))
    run = Run(CPU, worker)
    assert [one.precision for one in store(model, run, HALVES["bf16"])] == ["bfloat16"]
    assert model.ir.opset_imports[""] == 13
    assert "opset 11 of domain '' became 13" in run.journal.notes


def test_a_trained_model_keeps_its_decisions_at_half_the_size() -> None:
    result = graphopt.optimize(models.path("fashion_cnn"), store="fp16", measure=False, threads=1)
    report = result.report
    assert report.before is not None and report.after is not None and report.accuracy is not None
    assert report.after.file_bytes < 0.51 * report.before.file_bytes
    assert (report.store, report.precision) == ("fp16", None)
    assert {layer.precision for layer in report.layers} == {"float16"}
    assert report.accuracy.achieved and report.accuracy.after.sqnr_db is not None
    assert report.accuracy.after.sqnr_db > 60  # 2⁻¹¹ of each weight is 66 dB


def test_storage_follows_lower_precision() -> None:
    result = graphopt.optimize(
        models.path("fashion_mlp"), precision="int8-dynamic", store="fp16", measure=False, max_drop="5%"
    )
    kinds = {layer.precision for layer in result.report.layers}
    assert {"int8", "float16"} <= kinds


def test_storage_that_fails_takes_nothing_from_what_was_achieved_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(task: Task) -> Outcome:
        return Outcome(None, "it costs too much", replace(task.judge.reference, sqnr_db=1.0))

    monkeypatch.setattr(registry, "store", lambda _: fail)
    options = {"precision": "int8-dynamic", "measure": False, "max_drop": "5%"}
    alone = graphopt.optimize(models.path("fashion_mlp"), **options).report
    both = graphopt.optimize(models.path("fashion_mlp"), store="fp16", **options).report
    assert both.accuracy == alone.accuracy and both.layers == alone.layers
    assert "storage as fp16 not achieved, the model stays as it is: it costs too much" in both.notes


@pytest.mark.parametrize("seed", [0, 1])
def test_only_weights_that_cost_too_much_stay(seed: int) -> None:
    """a and b are all but equal, so that rounding either is all that is left of their difference."""
    rng = np.random.default_rng(seed)
    w, a = (rng.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    b = a + 1e-4 * rng.standard_normal((64, 64)).astype(np.float32)
    text = """g (float[4, 64] x) => (float[4, 64] y, float[4, 64] z)
        { y = MatMul (x, w)  p = MatMul (x, a)  q = MatMul (x, b)  z = Sub (p, q) }"""
    proto = build(text, w=w, a=a, b=b)
    report = graphopt.optimize(proto, store="bf16", measure=False).report
    assert {layer.name: layer.precision for layer in report.layers} == {
        "w": "bfloat16",
        "a": "float32",
        "b": "float32",
    }
    assert all(layer.reason.startswith("costs accuracy") for layer in report.layers if layer.name != "w")
    assert report.accuracy is not None and report.accuracy.achieved


def test_the_names_of_both_tables_agree() -> None:
    from graphopt.choices import STORES
    from graphopt_passes import STORES as MADE

    assert tuple(MADE) == STORES == tuple(HALVES)
    assert all(registry.store(name) for name in STORES)


def test_bfloat16_rounds_to_nearest() -> None:
    values = normal(1000)
    error = np.abs(values.astype(ml_dtypes.bfloat16).astype(np.float32) - values)
    assert (error <= HALVES["bf16"].unit * np.abs(values)).all()
