"""What pruning cannot work with: weights of NaN, too few samples, trials that do not run; it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.errors import WorkerError
from graphopt.proof.accuracy import Score
from graphopt.proof.evaluation import HeldOut
from graphopt_passes.quantize import sensitivity
from graphopt_passes.quantize.sensitivity import UNUSABLE, blame
from tests.support import parse, serialized

STAGES: list[dict[str, Any]] = [{"channels": 0.5}, {"rank": 0.5}, {"sparsity": 0.5}]
NAMES = ["channels", "rank", "sparsity"]


def two_branches(broken: float | None = None) -> onnx.ModelProto:
    """Two chains of two layers; the weights that end the second hold one number that is not finite."""
    proto = parse(
        "g (float[N, 96] x, float[96,128] w, float[128,96] v, float[96,128] s, float[128,96] t)"
        " => (float[N, 96] y, float[N, 96] z)"
        " { a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, v)"
        " c = MatMul (x, s)  d = Relu (c)  z = MatMul (d, t) }"
    )
    rng = np.random.default_rng(0)
    for value in list(proto.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        data = (rng.standard_normal(shape) / 10).astype(np.float32)
        if value.name == "t" and broken is not None:
            data[3, 5] = broken
        proto.graph.initializer.append(numpy_helper.from_array(data, value.name))
    del proto.graph.input[1:]
    return proto


def samples(count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((count, 96)).astype(np.float32)}


def pruned(proto: onnx.ModelProto, stage: dict[str, Any], count: int = 40) -> graphopt.Result:
    return graphopt.optimize(proto, data=samples(count), measure=False, **stage)


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_left_alone(stage: dict[str, Any], number: float) -> None:
    proto = two_branches(number)
    result = pruned(proto, stage)
    reasons = [row.reason for row in result.report.pruned if not row.kept]
    assert "the weight 't' holds NaN or infinity" in reasons
    assert any(row.kept for row in result.report.pruned)
    stored = {one.name: numpy_helper.to_array(one) for one in serialized(result.model).graph.initializer}
    before = next(numpy_helper.to_array(one) for one in proto.graph.initializer if one.name == "t")
    np.testing.assert_array_equal(stored["t"], before)


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_too_few_samples_fit_nothing_which_is_said(stage: dict[str, Any]) -> None:
    few, enough = (pruned(two_branches(), stage, count).report.notes for count in (3, 40))
    told = "at least 4 samples that calibrate, and there are 2"
    assert sum(told in note for note in few) == 1
    assert not any("is not fitted" in note for note in enough)


def test_one_sample_that_calibrates_is_told_in_the_singular() -> None:
    notes = pruned(two_branches(), {"sparsity": 0.5}, 2).report.notes
    assert any(note.endswith("and there is 1") for note in notes)


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_a_trial_that_does_not_run_is_no_end(stage: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    class Failing(HeldOut):
        def score(self, path: Path) -> Score:
            tried.append(path)
            if len(tried) == 1:
                raise WorkerError("out of luck")
            return super().score(path)

    monkeypatch.setattr(sensitivity, "HeldOut", Failing)
    report = pruned(two_branches(), stage).report
    assert len(tried) > 1
    told = [row.reason for row in report.pruned if "does not run if it alone is changed" in row.reason]
    assert told == ["the model does not run if it alone is changed: out of luck"]
    assert any(row.kept for row in report.pruned)


def test_what_does_not_run_on_integers_is_told_so() -> None:
    assert blame(UNUSABLE) == "the model does not run if it alone is int8"
    assert blame(0.01) == "costs accuracy: 20.0 dB if it alone is int8"
