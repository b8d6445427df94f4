"""--precision int8-weights and int4-weights: small weights within the budget, and a reason for all others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt.choices import BLOCK_SIZES, PRECISIONS, ROUNDINGS
from graphopt.errors import ParityError, UsageError, WorkerError
from graphopt.options import Options
from graphopt.proof.evaluation import HeldOut
from graphopt_passes import PRECISIONS as MADE
from tests.support import compute, ops, serialized
from tools import models

FOLDER = models.RECIPES.parent
CALIBRATION, TEST = str(FOLDER / "fashion_calibration.npz"), str(FOLDER / "fashion_test.npz")
RNG = np.random.default_rng(0)


def lowered(model: object, precision: str = "int4-weights", **options: object) -> graphopt.Result:
    given = {"measure": False, "threads": 1, **options}
    return graphopt.optimize(model, precision=precision, **given)  # type: ignore[arg-type]


def build(text: str, opset: int = 17, **arrays: np.ndarray) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(data, name) for name, data in arrays.items())
    return proto


def normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 8).astype(np.float32)


def test_a_trained_model_keeps_its_accuracy_in_a_sixth_of_its_size() -> None:
    result = lowered(models.path("fashion_mlp"), data=CALIBRATION, eval=TEST, calibration_limit=200)
    report = result.report
    assert report.accuracy is not None and report.accuracy.achieved
    assert report.before is not None and report.after is not None
    assert report.after.file_bytes < 0.2 * report.before.file_bytes
    assert {(one.precision, one.method, one.block) for one in report.layers} == {("int4", "gptq", 32)}
    assert all(
        one.bytes_after is not None and one.bytes_after < one.bytes_before / 6 for one in report.layers
    )
    assert ops(result.model)["MatMulNBits"] == len(report.layers)
    assert result.model.ir.opset_imports[""] == 21
    onnx.checker.check_model(serialized(result.model))


def noise_of(rounding: str, **options: object) -> float:
    result = lowered(
        models.path("fashion_mlp"), data=CALIBRATION, eval=TEST, rounding=rounding, max_drop="50%", **options
    )
    assert result.report.accuracy is not None and result.report.accuracy.after.sqnr_db is not None
    return result.report.accuracy.after.sqnr_db


def test_fitting_to_samples_has_less_noise_on_others() -> None:
    assert noise_of("gptq", calibration_limit=400) > noise_of("nearest", calibration_limit=400) + 3


def test_smaller_blocks_have_less_noise() -> None:
    sizes = [noise_of("nearest", block_size=block, calibration_limit=9) for block in (16, 256)]
    assert sizes[0] > sizes[1] + 1


def test_without_data_drawn_samples_judge() -> None:
    report = lowered(models.path("fashion_mlp"), max_drop="20%").report
    assert {one.method for one in report.layers if one.precision == "int4"} <= {"hqq", "nearest"}
    assert report.accuracy is not None and report.accuracy.calibration_samples == 0
    assert "synthetic" in report.accuracy.evidence


def test_eight_bits_need_no_newer_opset() -> None:
    text = "g (float[M, 128] x) => (float[M, 64] y) { y = MatMul (x, w) }"
    result = lowered(build(text, opset=13, w=normal(128, 64)), "int8-weights", max_drop="20%")
    assert result.model.ir.opset_imports[""] == 13
    assert [(one.precision, one.block, one.fused) for one in result.report.layers] == [("int8", 128, None)]


def test_products_of_eight_bits_are_float_on_cpus_whose_kernels_would_round_their_inputs() -> None:
    text = "g (float[M, 128] x) => (float[M, 64] y) { y = MatMul (x, w) }"
    proto = build(text, opset=13, w=normal(128, 64))
    cpu, gpu = (lowered(proto, "int8-weights", target=name, max_drop="20%") for name in ("cpu", "cuda"))
    (layer,) = cpu.report.layers
    assert "MatMulNBits" not in ops(cpu.model) and "its kernel would round" in layer.reason
    assert ops(gpu.model)["MatMulNBits"] == 1 and gpu.report.layers[0].fused
    assert cpu.report.accuracy is not None and gpu.report.accuracy is not None
    before, after = (one.report.accuracy.after.sqnr_db for one in (gpu, cpu))  # both judged on this CPU
    assert before is not None and after is not None and after > before + 1


def two_products() -> onnx.ModelProto:
    """One output is the difference of two nearly equal products, so that it shows the noise of both."""
    w = normal(64, 64)
    text = (
        "g (float[M, 64] x) => (float[M, 64] y, float[M, 64] z)"
        " { a = MatMul (x, w)  b = MatMul (x, v)  y = Sub (a, b)  z = MatMul (x, u) }"
    )
    return build(text, w=w, v=(w + normal(64, 64) * 1e-3).astype(np.float32), u=normal(64, 64))


def test_what_costs_too_much_accuracy_gets_more_bits_and_the_rest_stays_small() -> None:
    result = lowered(two_products(), max_drop="40%")
    kinds = {one.name: one.precision for one in result.report.layers}
    assert kinds["u"] == "int4" and kinds["w"] != "int4" and kinds["v"] != "int4"
    assert result.report.accuracy is not None and result.report.accuracy.achieved
    noisy = [one.sqnr_db for one in result.report.layers if one.name in ("w", "v")]
    quiet = next(one.sqnr_db for one in result.report.layers if one.name == "u")
    assert quiet is not None and all(db is not None and db < quiet for db in noisy)


@pytest.mark.parametrize(
    ("end", "bits"),
    [
        ("y = MatMul (h, v)", 8),
        ("y = Gemm (h, v, b)", 8),
        ("p = MatMul (h, v)  s = Add (p, b)  y = Softmax (s)", 8),
        ("p = MatMul (h, v)  q = Mul (p, b)  n = Shape (x)  y = Reshape (q, n)", 8),
        ("p = MatMul (h, v)  y = Identity (p)  z = ArgMax (p)", 8),
        ("p = MatMul (h, v)  y = Relu (p)", 4),
        ("p = MatMul (h, v)  y = Add (p, h)", 4),  # no scores, but a residual stream
        ("y = MatMul (h, v)  z = Relu (y)", 4),  # given, and read on
        ("y = If (c) <then_branch = t () => (p) { p = MatMul (h, v) }, else_branch = OTHER>", 4),
    ],
)
def test_a_last_product_has_eight_bits(end: str, bits: int) -> None:
    more = ", float z" if " z =" in end else ""
    end = end.replace("OTHER", "e () => (q) { q = Tanh (h) }")
    text = (
        f"g (float[M, 64] x, bool c) => (float[M, 64] y{more}) {{ a = MatMul (x, w)  h = Tanh (a)  {end} }}"
    )
    report = lowered(build(text, w=normal(64, 64), v=normal(64, 64), b=normal(64)), verify=False).report
    assert {one.name[0]: one.precision for one in report.layers} == {"w": "int4", "v": f"int{bits}"}


@pytest.mark.parametrize("columns", [20, 48, 96, 100])
@pytest.mark.parametrize("rounding", ["nearest", "awq"])
def test_blocks_have_a_size_that_kernels_know(columns: int, rounding: str) -> None:
    """A last product has blocks of 128 unless its rows are shorter."""
    proto = build(
        "g (float[n, 64] x) => (float[n, 256] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }",
        17,
        w=normal(64, columns),
        v=normal(columns, 256),
    )
    x = RNG.standard_normal((8, 1, 64)).astype(np.float32)
    result = lowered(proto, data={"x": x}, rounding=rounding, max_drop="0dB")
    assert all(layer.fused and layer.block in BLOCK_SIZES for layer in result.report.layers)
    [expected], [found] = (compute(one, {"x": x[0]}) for one in (proto, serialized(result.model)))
    assert np.square(found - expected).sum() < 0.1 * np.square(expected).sum()


def test_where_no_choice_keeps_the_budget_the_model_stays_as_it_is() -> None:
    w = normal(64, 64)
    text = "g (float[M, 64] x) => (float[M, 64] y) { a = MatMul (x, w)  b = MatMul (x, v)  y = Sub (a, b) }"
    proto = build(text, w=w, v=(w + normal(64, 64) * 1e-5).astype(np.float32))
    result = lowered(proto)
    assert ops(result.model) == {"MatMul": 2, "Sub": 1}
    assert any("no choice of weights keeps the budget" in note for note in result.report.notes)
    assert {one.precision for one in result.report.layers} == {"float32"}
    with pytest.raises(ParityError, match="int4-weights is not achieved"):
        lowered(proto, strict=True)


@pytest.mark.parametrize(("columns", "told"), [(64, True), (1024, False)])
def test_where_most_weights_stay_floats_half_precision_is_named(columns: int, told: bool) -> None:
    w = normal(64, 64)
    text = """g (float[M, 64] x) => (float[M, 64] y, float[M, N] z) {
    a = MatMul (x, w)  b = MatMul (x, v)  y = Sub (a, b)  z = MatMul (x, u) }"""
    proto = build(text, w=w, v=(w + normal(64, 64) * 1e-5).astype(np.float32), u=normal(64, columns))
    report = lowered(proto, max_drop="15dB").report
    assert {one.name: one.precision[:3] for one in report.layers} == {"w": "flo", "v": "flo", "u": "int"}
    assert any("--store fp16" in note for note in report.notes) == told


def test_a_model_without_weights_stays_as_it_is() -> None:
    result = lowered(build("g (float[M, 4] x) => (float[M, 4] y) { y = Relu (x) }"))
    assert any("there is no float32 weight" in note for note in result.report.notes)


def test_weights_with_nan_are_left_out() -> None:
    v = normal(64, 64)
    v[3, 4] = np.nan
    text = "g (float[M, 64] x) => (float[M, 64] y, float[M, 64] z) { y = MatMul (x, w)  z = MatMul (x, v) }"
    report = lowered(build(text, w=normal(64, 64), v=v), verify=False).report
    assert {one.name: one.precision for one in report.layers} == {"w": "int4", "v": "float32"}


def test_without_verification_no_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr(HeldOut, "score", refuse)
    result = lowered(models.path("fashion_mlp"), rounding="nearest", verify=False)
    assert result.report.accuracy is None
    assert "not judged: --no-verify" in result.report.notes
    assert {one.precision for one in result.report.layers} == {"int4"}


@pytest.mark.parametrize("how", [{"precision": "int4-weights"}, {"store": "fp16"}])
def test_what_does_not_fit_into_memory_is_judged_by_its_structure(
    how: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise WorkerError("ONNX Runtime ran out of memory", "memory")

    monkeypatch.setattr(HeldOut, "score", fail)
    result = graphopt.optimize(models.path("fashion_mlp"), measure=False, **how)
    assert any("does not fit into memory" in note for note in result.report.notes)
    assert result.report.accuracy is None
    assert result.report.after is not None and result.report.before is not None
    assert result.report.after.file_bytes < 0.6 * result.report.before.file_bytes


def test_tensorrt_gets_symmetric_blocks_in_onnx_own_words() -> None:
    proto = build(
        "g (float[M, 64] x, int64[N] i) => (float[M, 32] y, float[N, 64] e)"
        " { y = MatMul (x, w)  e = Gather (t, i) }",
        w=normal(64, 32),
        t=normal(40, 64),
    )
    result = lowered(proto, target="tensorrt", max_drop="40%")
    assert ops(result.model) == {"DequantizeLinear": 1, "MatMul": 1, "Gather": 1}
    [node] = [one for one in result.model.ir.graph if one.op_type == "DequantizeLinear"]
    assert len(node.inputs) == 2 and node.attributes["block_size"].value == 32
    assert node.inputs[0] is not None and str(node.inputs[0].dtype) == "INT4"
    onnx.checker.check_model(serialized(result.model), full_check=True)


def test_half_precision_stores_the_scales_too() -> None:
    both = lowered(
        models.path("fashion_mlp"), data=CALIBRATION, eval=TEST, store="fp16", calibration_limit=64
    )
    alone = lowered(models.path("fashion_mlp"), data=CALIBRATION, eval=TEST, calibration_limit=64)
    assert both.report.after is not None and alone.report.after is not None
    assert both.report.after.file_bytes < 0.92 * alone.report.after.file_bytes
    assert both.report.accuracy is not None and both.report.accuracy.achieved


def test_measured_it_is_no_slower() -> None:
    report = lowered(models.path("fashion_mlp"), data=CALIBRATION, calibration_limit=32, measure=True).report
    assert report.comparison is not None
    assert {one.precision for one in report.layers} <= {"int4", "int8", "float32"}
    decoded = [one for one in report.layers if one.precision == "int4" and not one.fused]
    assert all("made float when the model is loaded" in one.reason for one in decoded)


def test_where_kernels_are_measured_to_be_slower_the_weights_stay_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = iter(["0.5x", ""])
    monkeypatch.setattr("graphopt_passes.weights.lower.slower", lambda *_: next(found))
    result = lowered(models.path("fashion_mlp"), max_drop="20%")
    assert "MatMulNBits" not in ops(result.model)
    assert {one.precision for one in result.report.layers} == {"int4"}
    monkeypatch.setattr("graphopt_passes.weights.lower.slower", lambda *_: "0.5x")
    refused = lowered(models.path("fashion_mlp"), max_drop="20%")
    assert any("it is slower: 0.5x" in note for note in refused.report.notes)


CONFLICTS = {
    "block size alone": ({"block_size": 32}, "--block-size needs --precision"),
    "rounding of int8": (
        {"precision": "int8-dynamic", "rounding": "hqq"},
        "int8-dynamic has no use",
    ),
    "odd block": ({"precision": "int4-weights", "block_size": 48}, "none of 16, 32, 64, 128, 256"),
    "unknown rounding": ({"precision": "int4-weights", "rounding": "round"}, "auto, nearest, hqq, gptq, awq"),
    "gptq without data": ({"precision": "int4-weights", "rounding": "gptq"}, "--data"),
    "awq without data": ({"precision": "int4-weights", "rounding": "awq"}, "--data"),
    "ranges of weights": ({"precision": "int4-weights", "ranges": "kl"}, "--ranges"),
    "unknown storage": ({"store": "fp8"}, "fp16, bf16"),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_what_is_asked_must_make_sense(case: str) -> None:
    options, message = CONFLICTS[case]
    with pytest.raises(UsageError, match=message):
        Options(**options)


def test_the_tables_agree() -> None:
    assert list(MADE) == list(PRECISIONS)
    assert ROUNDINGS[0] == "auto" and BLOCK_SIZES == (16, 32, 64, 128, 256)


def test_a_weight_with_nan_stays_and_the_others_are_fitted() -> None:
    bad = normal(64, 64)
    bad[3, 5] = np.nan
    proto = build(
        "g (float[n,64] x) => (float[n,64] y, float[n,64] z) { y = MatMul(x, w)  z = MatMul(x, v) }",
        w=normal(64, 64),
        v=bad,
    )
    data = [{"x": RNG.standard_normal((1, 64)).astype(np.float32)} for _ in range(24)]
    result = lowered(proto, data=data, max_drop="100%")
    assert {one.name: one.precision for one in result.report.layers}["v"] == "float32"


def test_rows_of_a_prime_length_share_one_scale() -> None:
    proto = build(
        "g (float[1,1031,2,2] x) => (float[1,64,2,2] y) { y = Conv(x, w) }", w=normal(64, 1031, 1, 1)
    )
    result = lowered(proto, rounding="nearest", max_drop="100%")
    (layer,) = result.report.layers
    assert layer.precision in ("int4", "int8") and layer.block == 1031
    assert result.report.after is not None and result.report.before is not None
    assert result.report.after.file_bytes < 0.3 * result.report.before.file_bytes


def test_weights_that_sum_up_single_numbers_stay() -> None:
    proto = build("g (float[1,1,8,8] x) => (float[1,4096,8,8] y) { y = Conv(x, w) }", w=normal(4096, 1, 1, 1))
    (layer,) = lowered(proto, max_drop="100%").report.layers
    assert layer.precision == "float32" and "summed up" in layer.reason


def test_there_may_be_nothing_left_to_store() -> None:
    result = lowered(models.path("fashion_mlp"), "fp16", target="cuda", store="fp16", strict=True)
    assert any("no float32 weight is left" in note for note in result.report.notes)


NOT_FLOAT = {
    "overridable": (
        "g (float[M, 64] x, float[64, 64] w) => (float[M, 64] y) { y = MatMul (x, w) }",
        normal(64, 64),
        "callers may override it; if none does, use --freeze-initializers",
    ),
    "float16": (
        "g (float16[M, 64] x) => (float16[M, 64] y) { y = MatMul (x, w) }",
        normal(64, 64).astype(np.float16),
        "it is float16 already",
    ),
    "int8": (
        "g (uint8[M, 64] x) => (int32[M, 64] y) { y = MatMulInteger (x, w) }",
        RNG.integers(-128, 127, (64, 64), np.int8),
        "it is int8 already",
    ),
}


@pytest.mark.parametrize("case", NOT_FLOAT)
def test_a_weight_that_is_no_constant_of_floats_has_its_own_reason(case: str) -> None:
    text, w, reason = NOT_FLOAT[case]
    report = lowered(build(text, w=w)).report
    assert [(one.name, one.precision, one.reason) for one in report.layers] == [("w", "float32", reason)]
    assert any(f"1x {reason}" in note for note in report.notes)


def test_without_verification_kernels_that_are_slower_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter(["slower, they say", ""])
    monkeypatch.setattr("graphopt_passes.weights.lower.slower", lambda *_: next(told))
    result = lowered(models.path("fashion_mlp"), rounding="nearest", verify=False)
    assert "MatMulNBits" not in ops(result.model)
    assert {one.precision for one in result.report.layers} == {"int4"}
