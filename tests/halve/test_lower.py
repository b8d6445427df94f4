"""--precision fp16 and bf16: what keeps the budget is half, what would fail is not, and reasons are given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.errors import ParityError, UsageError
from graphopt.interface import Interface, differences
from tests.halve.support import BFLOAT16, FLOAT16, complaint, types
from tests.support import compute, serialized
from tests.traps import kit
from tools import models

FOLDER = models.RECIPES.parent
CALIBRATION, TEST = str(FOLDER / "fashion_calibration.npz"), str(FOLDER / "fashion_test.npz")


def lowered(model: Path | onnx.ModelProto, precision: str = "fp16", **options: Any) -> graphopt.Result:
    given = {"target": "cuda", "measure": False, "threads": 1, **options}
    return graphopt.optimize(model, precision=precision, **given)


def precisions(result: graphopt.Result) -> Counter[str]:
    return Counter(layer.precision for layer in result.report.layers)


@pytest.mark.parametrize(("precision", "half"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_a_trained_model_keeps_its_accuracy_in_half_the_bytes(precision: str, half: str) -> None:
    result = lowered(models.path("fashion_mlp"), precision, data=CALIBRATION, eval=TEST)
    report = result.report
    assert report.accuracy is not None and report.accuracy.achieved
    assert report.accuracy.int8_macs == 1
    assert precisions(result).keys() == {half}
    (untried,) = (note for note in report.notes if note.endswith("pays is not known"))
    assert ("never run" in untried) == (half == "bfloat16")
    assert report.before is not None and report.after is not None
    assert report.after.file_bytes < 0.51 * report.before.file_bytes
    proto = serialized(result.model)
    assert complaint(proto) == ""
    original = onnx.load(models.path("fashion_mlp"))
    told = [text for text in differences(Interface.of(original), Interface.of(proto)) if "opset" not in text]
    assert told == []


def test_the_interface_becomes_half_on_request_and_is_said() -> None:
    result = lowered(models.path("fashion_mlp"), data=CALIBRATION, convert_io=True)
    found = types(serialized(result.model))
    assert (found["input"], found["logits"]) == (FLOAT16, FLOAT16)
    assert "float inputs and outputs became float16, as --convert-io asks" in result.report.notes


def centred() -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    """A difference of large numbers, which halves of the input no longer know."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((64, 64)) / 8).astype(np.float32)
    proto = kit.model(
        "g (float[N,64] x) => (float[N,64] y) { d = Sub(x, c) y = MatMul(d, w) }",
        w=weight,
        c=kit.scalar(9999.5),
    )
    feeds = [{"x": (9999.5 + rng.standard_normal((1, 64))).astype(np.float32)} for _ in range(40)]
    return proto, feeds


def test_a_converted_interface_is_judged_as_it_is_written() -> None:
    """Rounded inputs leave nothing of the difference, so it is no result."""
    proto, feeds = centred()
    result = lowered(proto, data=feeds, keep=["Sub"], convert_io=True, max_drop="50%")
    assert types(serialized(result.model))["x"] == onnx.TensorProto.FLOAT
    assert any("not achieved" in note for note in result.report.notes)


def test_a_cheap_node_alone_is_found_to_be_what_costs() -> None:
    """Alone the Sub is not worth its Casts, so only beside the product does it show what it costs."""
    proto, feeds = centred()
    result = lowered(proto, data=feeds)
    found = {layer.name: layer.precision for layer in result.report.layers}
    assert (found["d"], found["y"]) == ("float32", "float16")
    assert result.report.accuracy is not None and result.report.accuracy.achieved


def test_an_interface_that_does_not_fit_stays() -> None:
    proto = kit.model(
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) b = Sigmoid(a) y = Mul(b, c) }",
        w=kit.normal(8, 8),
        c=kit.scalar(60000),
    )
    result = lowered(proto, convert_io=True, max_drop="100%")
    assert any("inputs and outputs stay float: 'y' reaches" in note for note in result.report.notes)
    assert types(serialized(result.model))["x"] == onnx.TensorProto.FLOAT


def with_a_hidden_overflow() -> onnx.ModelProto:
    """A largest square that overflows in float16 and makes the quotient 0, behind what can be half."""
    return kit.model(
        """g (float[4,64] x) => (float[4,64] y) {
        a = MatMul(x, w)
        b = MatMul(a, w)
        s = Mul(b, b)
        v = ReduceMax<axes = [1]>(s)
        q = Div(b, v)
        y = MatMul(q, w)
    }""",
        w=4 * kit.normal(64, 64),
    )


def test_a_hidden_overflow_is_kept_float_and_named() -> None:
    result = lowered(with_a_hidden_overflow())
    why = {layer.name: layer.reason for layer in result.report.layers if layer.precision == "float32"}
    assert "float16 ends at 65504" in why["s"]
    assert precisions(result)["float16"] >= 1


def sensitive() -> onnx.ModelProto:
    """Two branches; in one small differences of large numbers count, which halves do not have."""
    return kit.model(
        """g (float[8,32] x) => (float[8,32] y) {
        a = MatMul(x, w)
        b = Add(a, thousand)
        c = MatMul(b, e)
        d = Sub(c, thousand)
        f = MatMul(x, v)
        h = Tanh(f)
        k = MatMul(h, v)
        m = Mul(k, tenth)
        y = Add(d, m)
    }""",
        w=kit.normal(32, 32) / 6,
        v=kit.normal(32, 32, seed=1) / 6,
        e=np.eye(32, dtype=np.float32),
        thousand=kit.scalar(4000),
        tenth=kit.scalar(0.1),
    )


def test_the_search_returns_the_fewest_nodes_to_float_and_names_them() -> None:
    result = lowered(sensitive())
    report = result.report
    assert report.accuracy is not None and report.accuracy.achieved
    halves = {layer.name for layer in report.layers if layer.precision == "float16"}
    assert halves == {"f", "h", "k", "m"}
    blamed = {layer.name: layer for layer in report.layers if layer.reason.startswith("costs accuracy")}
    assert blamed.keys() == {"b", "c"}
    assert all(layer.sqnr_db is not None and layer.sqnr_db < 20 for layer in blamed.values())


def test_nothing_is_emitted_if_no_part_keeps_the_budget() -> None:
    proto = kit.model(
        "g (float[8,32] x) => (float[8,32] y) { a = MatMul(x, w) b = MatMul(x, u) y = Sub(a, b) }",
        w=kit.normal(32, 32),
        u=kit.normal(32, 32) * (1 + 1e-5),
    )
    result = lowered(proto)
    assert precisions(result).keys() == {"float32"}
    assert any(note.startswith("fp16 not achieved") for note in result.report.notes)
    with pytest.raises(ParityError, match="fp16 is not achieved, so --strict writes nothing"):
        lowered(proto, strict=True)


def test_on_a_cpu_it_is_measured_and_the_exact_result_is_kept() -> None:
    result = graphopt.optimize(models.path("fashion_mlp"), precision="fp16", data=CALIBRATION, threads=1)
    told = [note for note in result.report.notes if note.startswith("fp16 not achieved")]
    assert len(told) == 1 and "between Casts of its own: " in told[0] and " ms → " in told[0]
    assert any("--store fp16" in note for note in result.report.notes)
    assert FLOAT16 not in types(serialized(result.model)).values()


def test_on_a_cpu_there_is_no_bfloat16() -> None:
    result = graphopt.optimize(models.path("fashion_mlp"), precision="bf16", measure=False)
    assert any("no kernels for bfloat16 on CPUs" in note for note in result.report.notes)
    assert BFLOAT16 not in types(serialized(result.model)).values()


def test_drawn_samples_are_said_so() -> None:
    result = lowered(models.path("fashion_mlp"))
    assert "ranges are those of drawn samples: give real ones with --data" in result.report.notes
    assert result.report.accuracy is not None and result.report.accuracy.synthetic


def test_what_was_judged_is_what_is_computed() -> None:
    """The emulation that judges and numpy in half agree on a product of a trained size."""
    result = lowered(sensitive())
    (half,) = compute(serialized(result.model), feeds := {"x": kit.normal(8, 32)})
    (exact,) = compute(sensitive(), feeds)
    assert 10 * np.log10((exact**2).sum() / ((exact - half) ** 2).sum()) > 20


def test_drawn_samples_that_do_not_run_are_no_failure() -> None:
    proto = kit.model(
        "g (float[N] x) => (float[64] y) { a = Exp(x) b = Reshape(a, s) y = MatMul(b, w) }",
        s=kit.ints(104729),
        w=kit.normal(104729, 64),
    )
    result = lowered(proto)
    assert any("drawn samples do not run; give some with --data" in note for note in result.report.notes)


def test_kept_operators_stay_float() -> None:
    result = lowered(models.path("fashion_cnn"), data=CALIBRATION, keep=["Gemm"])
    assert {layer.op for layer in result.report.layers if layer.precision == "float32"} >= {"Gemm"}


@pytest.mark.parametrize(
    "options",
    [{"precision": None}, {"precision": "int8", "data": "synthetic"}, {"precision": "int8-dynamic"}],
)
def test_convert_io_needs_half(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--convert-io needs --precision fp16 or bf16"):
        graphopt.optimize(models.path("fashion_mlp"), convert_io=True, **options)


def test_what_chooses_ranges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--ranges: fp16 chooses no ranges"):
        lowered(models.path("fashion_mlp"), ranges="kl")
    with pytest.raises(UsageError, match="--save-calibration: bf16 chooses no ranges"):
        lowered(models.path("fashion_mlp"), "bf16", save_calibration=tmp_path / "c.json")


def test_casts_of_what_callers_may_override_are_named() -> None:
    text = "g (float[N,64] x, float[64,64] w) => (float[N,64] y) { y = MatMul(x, w) }"
    weight = (np.random.default_rng(0).standard_normal((64, 64)) / 8).astype(np.float32)
    notes = lowered(kit.model(text, w=weight)).report.notes
    assert any(note.startswith("1 of these convert weights that callers may override") for note in notes)
    frozen = lowered(kit.model(text, w=weight), freeze_initializers=True).report.notes
    assert not any("callers may override" in note for note in frozen)


def test_a_quantized_model_is_half_between_its_integers_on_a_gpu() -> None:
    rng = np.random.default_rng(0)
    proto = kit.model(
        """g (float[N,32] x) => (float[N,32] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        w = DequantizeLinear(i, t, z)
        b = DequantizeLinear(c, u)
        p = MatMul(d, w)
        y = Add(p, b)
    }""",
        s=kit.scalar(0.05),
        z=np.array(0, np.int8),
        i=rng.integers(-127, 127, (32, 32), np.int8),
        t=kit.scalar(0.01),
        c=rng.integers(-(10**6), 10**6, 32).astype(np.int32),
        u=kit.scalar(1.3e-6),
    )
    result = lowered(proto)
    found = serialized(result.model)
    assert result.report.accuracy is not None and result.report.accuracy.int8_macs == 1
    assert Counter(node.op_type for node in found.graph.node)["Cast"] == 1  # the input is quantized as it is
    assert types(found)["d"] == FLOAT16 and types(found)["q"] == onnx.TensorProto.INT8
    assert "opset 17 of domain '' became 19" in result.report.notes
    x = {"x": kit.normal(4, 32)}
    (expected,), (other,) = compute(proto, x), compute(found, x)
    np.testing.assert_allclose(other, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
