"""--rank: layers of lower rank within the budget, as many as were asked for, and a reason for all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt.activations import Collector
from graphopt.errors import ParityError
from graphopt.runtime.moments import Moments
from graphopt_passes.compress import stage
from tests.support import compute, ops, serialized
from tools import models

from .conftest import Images


def low_rank_model(noise: float = 0.0) -> onnx.ModelProto:
    """A layer of 96 x 128 numbers whose rank is 16, and one of full rank."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 128] x) => (float[N, 96] y, float[N, 96] z)'
        " { y = MatMul (x, w)  z = MatMul (x, v) }"
    )
    w = rng.standard_normal((128, 16)) @ rng.standard_normal((16, 96)) / 16
    v = rng.standard_normal((128, 96)) / 8
    w = w + noise * rng.standard_normal(w.shape)
    for name, data in (("w", w), ("v", v)):
        proto.graph.initializer.append(numpy_helper.from_array(data.astype(np.float32), name))
    return proto


def test_a_layer_of_low_rank_is_found_and_the_other_left_alone() -> None:
    proto = low_rank_model()
    data = {"x": np.random.default_rng(1).standard_normal((40, 128)).astype(np.float32)}
    result = graphopt.optimize(proto, rank="auto", data=data, measure=False)
    kept = {layer.name: layer.kept for layer in result.report.pruned}
    assert kept == {"y": "rank 16 of 96", "z": ""}
    assert ops(result.model) == {"MatMul": 3}
    x = {"x": np.random.default_rng(2).standard_normal((5, 128)).astype(np.float32)}
    for before, after in zip(compute(proto, x), compute(serialized(result.model), x), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)


def test_noise_is_measured_on_samples_that_fitted_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moments of the others are what layers are fitted to."""
    fitted: list[bytes] = []
    judged: list[bytes] = []
    original, gather = stage.sensitivities, Collector.stream

    def spied(*args: Any) -> Any:
        judged.extend(_bytes(args[-1]))
        return original(*args)

    def gathered(collector: Collector, model: Any, requests: Any, samples: Any) -> Any:
        if any(isinstance(request.kind, Moments) for request in requests):
            fitted.extend(_bytes(samples))
        return gather(collector, model, requests, samples)

    monkeypatch.setattr(stage, "sensitivities", spied)
    monkeypatch.setattr(Collector, "stream", gathered)
    data = {"x": np.random.default_rng(1).standard_normal((40, 128)).astype(np.float32)}
    graphopt.optimize(low_rank_model(), rank=0.3, data=data, measure=False)
    assert fitted and judged and not set(fitted) & set(judged)


def _bytes(samples: Any) -> list[bytes]:
    return [sample["x"].numpy().tobytes() for sample in samples]


def test_without_data_the_weights_decide() -> None:
    result = graphopt.optimize(low_rank_model(), rank="auto", measure=False)
    assert {layer.name: bool(layer.kept) for layer in result.report.pruned} == {"y": True, "z": False}
    assert any("pruned without data" in note for note in result.report.notes)


def test_a_share_is_done_at_any_cost_which_is_told(images: Images) -> None:
    report = graphopt.optimize(models.path("fashion_cnn"), rank=0.5, **images).report
    assert report.accuracy is not None and report.accuracy.budget == "none" and report.accuracy.achieved
    saved = sum((one.macs_before or 0) - (one.macs_after or 0) for one in report.pruned if one.kept)
    assert saved > 0.5 * 2.6e6  # of 2.7 M multiply-accumulates
    assert any(note.startswith("removed ") for note in report.notes)


def test_with_a_budget_the_share_is_the_most(images: Images) -> None:
    report = graphopt.optimize(models.path("fashion_cnn"), rank=0.6, max_drop="0.4%", **images).report
    accuracy = report.accuracy
    assert accuracy is not None and accuracy.budget == "0.4 %"
    assert accuracy.achieved
    assert accuracy.after.metric is not None and accuracy.before.metric is not None
    assert accuracy.after.metric >= accuracy.before.metric * (1 - 0.004)
    assert any(one.kept for one in report.pruned)


def test_every_layer_that_stays_has_a_reason(images: Images) -> None:
    report = graphopt.optimize(models.path("fashion_residual"), rank="auto", **images).report
    assert report.pruned
    assert all(one.reason for one in report.pruned if not one.kept)
    assert all(one.error is not None for one in report.pruned if one.kept)


def test_what_is_kept_stays() -> None:
    result = graphopt.optimize(low_rank_model(), rank="auto", keep=["MatMul"], measure=False)
    assert ops(result.model) == {"MatMul": 2}
    assert {one.reason for one in result.report.pruned} == {"it is to be kept (--keep)"}
    with pytest.raises(ParityError, match="--rank is not achieved"):
        graphopt.optimize(low_rank_model(), rank="auto", keep=["MatMul"], measure=False, strict=True)


def test_stages_behind_a_share_are_judged_beside_its_result(images: Images) -> None:
    """Halves of what is left cost next to nothing, however much the share cost before."""
    report = graphopt.optimize(models.path("fashion_cnn"), rank=0.6, store="fp16", **images).report
    assert report.layers and all(one.precision == "float16" for one in report.layers)
    assert report.accuracy is not None and report.accuracy.budget == "none"
    assert report.accuracy.before.metric is not None and report.accuracy.before.metric > 88
    assert any(note.startswith("storage as fp16, beside the pruned model") for note in report.notes)


def test_a_combination_shares_a_budget(images: Images) -> None:
    report = graphopt.optimize(
        models.path("fashion_mlp"), rank="auto", store="fp16", max_drop="1%", **images
    ).report
    assert report.accuracy is not None and report.accuracy.achieved and report.accuracy.budget == "1 %"


def test_a_model_whose_weights_are_listed_as_inputs() -> None:
    proto = low_rank_model()
    proto.ir_version = 3
    for name, shape in (("w", (128, 96)), ("v", (128, 96))):
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    result = graphopt.optimize(proto, rank="auto", measure=False)
    assert {layer.name: bool(layer.kept) for layer in result.report.pruned} == {"y": True, "z": False}
    assert result.model.ir.ir_version == 4
