"""sum-to-add: Sums of two values, as broadcast as they were, and none that another operator takes in."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.model import Model
from graphopt.runtime.worker import Worker
from graphopt_passes.exact.sum_to_add import SumToAdd
from tests.support import assert_same, ops, parse, run_passes, serialized

SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, -1e-45, 3e38, 1.5]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from([("4,1", "3"), ("2,3", "2,3"), ("", "5"), ("1", "0"), ("2,1,3", "4,1")]),
    st.sampled_from(["float", "double"]),
    st.booleans(),
)
def test_two_values_are_added(worker: Worker, dims: tuple[str, str], dtype: str, turned: bool) -> None:
    a, b = (f"{dtype}[{found}]" if found else dtype for found in dims)
    shapes = [tuple(int(dim) for dim in found.split(",") if dim) for found in dims]
    result = ",".join(map(str, np.broadcast_shapes(*shapes)))
    proto = parse(f"g ({a} a, {b} b) => ({dtype}[{result}] y) {{ y = Sum({'b, a' if turned else 'a, b'}) }}")
    model, _ = run_passes(proto, SumToAdd(), worker=worker)
    assert ops(model) == {"Add": 1}
    rng = np.random.default_rng(0)
    kind = np.float32 if dtype == "float" else np.float64
    drawn = [rng.choice(SPECIAL, shape).astype(kind) for shape in shapes]
    assert_same(proto, model, dict(zip("ab", drawn, strict=True)))


@pytest.mark.parametrize("operands", ["a", "a, a, b"])
def test_other_counts_stay(worker: Worker, operands: str) -> None:
    proto = parse(
        f"g (float[3] a, float[3] b) => (float[3] y, float[3] z) {{ y = Sum({operands}) z = Neg(b) }}"
    )
    model, _ = run_passes(proto, SumToAdd(), worker=worker)
    assert ops(model) == {"Sum": 1, "Neg": 1}


def test_before_opset_7_it_stays(worker: Worker) -> None:
    proto = parse("g (float[3] a, float[3] b) => (float[3] y) { y = Sum(a, b) }", opset=6)
    model, run = run_passes(proto, SumToAdd(), worker=worker)
    assert ops(model) == {"Sum": 1}
    assert [refusal.reason for refusal in run.journal.refusals] == ["Add has other attributes before opset 7"]


def in_runtime(model: Model, tmp_path) -> list[str]:
    """The operators that ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(serialized(model).SerializeToString(), options)
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


def test_behind_a_gemm_without_bias_it_stays_for_the_runtime_to_merge(worker: Worker, tmp_path) -> None:
    proto = parse(
        "g (float[4,3] a, float[3,5] b, float[4,5] c) => (float[4,5] y) { p = Gemm(a, b) y = Sum(p, c) }"
    )
    model, _ = run_passes(proto, SumToAdd(), worker=worker)
    assert ops(model) == {"Gemm": 1, "Sum": 1}
    assert in_runtime(model, tmp_path) == ["Gemm"]


def test_the_runtime_adds_on_integers(worker: Worker, tmp_path) -> None:
    proto = parse(
        """g (uint8[4] a, uint8[4] b) => (uint8[4] y) <float s = {0.1}, uint8 z = {3}> {
        da = DequantizeLinear(a, s, z) db = DequantizeLinear(b, s, z) t = Sum(da, db)
        y = QuantizeLinear(t, s, z) }"""
    )
    model, _ = run_passes(proto, SumToAdd(), worker=worker)
    assert in_runtime(Model.of(proto), tmp_path).count("QLinearAdd") == 0
    assert in_runtime(model, tmp_path) == ["QLinearAdd"]
