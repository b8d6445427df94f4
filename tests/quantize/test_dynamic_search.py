"""--precision int8-dynamic: what keeps the budget is quantized, and every node has its reason."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt.model import Model
from graphopt.proof.heldout import divide, gather
from graphopt.samples.inputs import inputs_of
from tools import models

FOLDER = models.RECIPES.parent
CALIBRATION, TEST = str(FOLDER / "fashion_calibration.npz"), str(FOLDER / "fashion_test.npz")


def lowered(model: str | onnx.ModelProto, **options: str) -> graphopt.Result:
    return graphopt.optimize(
        model, precision="int8-dynamic", max_drop="1%", measure=False, threads=1, **options
    )


def ops(result: graphopt.Result) -> list[str]:
    return [node.op_type for node in result.model.ir.graph]


def with_outliers() -> onnx.ModelProto:
    """Two products; one reads a value with a channel a thousand times larger than what counts."""
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((2, 64, 64)).astype(np.float32)
    scales = np.ones(64, np.float32)
    scales[0], v[0] = 3000, 0
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 64] y)'
        " { fine = MatMul (x, w) large = Mul (x, scales) s = Elu (large) t = Tanh (x) u = Mul (t, x)"
        " coarse = MatMul (s, v) z = Sub (fine, coarse) y = Add (z, u) }"
    )
    for name, data in (("w", w), ("v", v), ("scales", scales)):
        proto.graph.initializer.append(numpy_helper.from_array(data, name))
    return proto


def test_a_trained_model_keeps_its_accuracy() -> None:
    result = lowered(models.path("fashion_mlp"), data=CALIBRATION, eval=TEST)
    report = result.report
    assert ops(result).count("MatMulInteger") == 2
    assert [layer.precision for layer in report.layers] == ["int8", "int8", "float32"]
    assert report.layers[2].reason == "its weight of 640 elements is too small to pay"
    assert all(layer.fused for layer in report.layers[:2])
    assert report.accuracy is not None and report.accuracy.after.metric is not None
    assert report.accuracy.before.metric is not None
    assert report.accuracy.after.metric > report.accuracy.before.metric - 0.5
    assert report.accuracy.int8_macs is not None and report.accuracy.int8_macs > 0.9


def test_what_costs_the_budget_stays_on_floats() -> None:
    result = lowered(with_outliers())
    layers = {layer.name: layer for layer in result.report.layers}
    assert layers["fine"].precision == "int8"
    assert layers["coarse"].precision == "float32"
    assert re.fullmatch(r"costs accuracy: -?\d+\.\d dB if it alone is int8", layers["coarse"].reason)
    assert ops(result).count("MatMulInteger") == 1
    assert result.report.accuracy is not None
    sqnr = result.report.accuracy.after.sqnr_db
    assert sqnr is not None and sqnr > 20


def test_if_nothing_keeps_the_budget_floats_stay_with_the_reason() -> None:
    proto = with_outliers()
    [fine] = [node for node in proto.graph.node if node.output[0] == "fine"]
    fine.CopyFrom(onnx.helper.make_node("Relu", ["x"], ["fine"]))
    result = lowered(proto)
    assert "MatMulInteger" not in ops(result)
    assert any("no placement keeps the budget" in note for note in result.report.notes)


def test_a_model_without_products_says_so() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Tanh (x) }'
    )
    result = lowered(proto)
    assert any("no node can be quantized dynamically" in note for note in result.report.notes)


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_other_targets_keep_their_floats(target: str) -> None:
    result = lowered(with_outliers(), target=target)
    assert "MatMulInteger" not in ops(result)
    assert any("dynamic int8 is for CPUs" in note for note in result.report.notes)


def test_samples_are_not_read_to_calibrate_where_nothing_does(tmp_path: Path) -> None:
    model = Model.load(models.path("fashion_mlp"))
    samples = gather(model.ir, CALIBRATION)
    division = divide(samples, TEST, inputs_of(model.ir), calibrate=False)
    assert list(division.calibration) == []
    assert division.calibration_count == 0
    assert division.evaluation_count == 2000
