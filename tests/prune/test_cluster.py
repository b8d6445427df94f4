"""--cluster: weights as indices, which cost accuracy as far as the budget allows and no time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt
from graphopt import graph as g
from tests.support import compute, ops, serialized
from tools import models

from .conftest import Images


@pytest.mark.parametrize(("bits", "share"), [(4, 0.2), (8, 0.35)])
def test_a_trained_model_gets_smaller_and_its_cost_is_told(bits: int, share: float, images: Images) -> None:
    result = graphopt.optimize(models.path("fashion_mlp"), cluster=bits, **images)
    report = result.report
    assert report.before is not None and report.after is not None and report.accuracy is not None
    assert report.after.file_bytes < share * report.before.file_bytes
    assert report.accuracy.budget == "none"
    changed = [layer for layer in report.pruned if layer.kept]
    assert changed and all(layer.kept == f"{2**bits} values of {bits} bits" for layer in changed)
    assert all(layer.error is not None and layer.error < (0.05 if bits == 4 else 1e-3) for layer in changed)
    after = serialized(result.model)
    onnx.checker.check_model(after, full_check=True)
    feeds = {"input": np.load(images["eval"])["input"][:64]}
    before = onnx.load(models.path("fashion_mlp"))
    (exact,), (found,) = compute(before, feeds), compute(after, feeds)
    assert np.mean(exact.argmax(1) == found.argmax(1)) > 0.9


def test_a_second_run_changes_nothing(images: Images) -> None:
    once = graphopt.optimize(models.path("fashion_mlp"), cluster=4, **images).model
    twice = graphopt.optimize(serialized(once), measure=False).model
    assert ops(twice) == ops(once)
    assert twice.file_size() <= once.file_size()


def test_nothing_is_decoded_in_a_run(tmp_path: Path) -> None:
    """ONNX Runtime folds Cast and Gather of constants when it makes a session."""
    stored, run = tmp_path / "stored.onnx", tmp_path / "run.onnx"
    graphopt.optimize(models.path("fashion_mlp"), stored, cluster=4, measure=False, verify=False)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(run)
    ort.InferenceSession(str(stored), options)
    in_file, in_run = ({node.op_type for node in onnx.load(path).graph.node} for path in (stored, run))
    assert {"Gather", "Cast"} <= in_file
    assert not {"Gather", "Cast"} & in_run


def test_each_weight_has_no_more_values_than_indices_can_name(images: Images) -> None:
    model = graphopt.optimize(models.path("fashion_mlp"), cluster=4, **images).model
    tables = [node.inputs[0] for node in g.nodes(model.ir) if node.op_type == "Gather"]
    assert tables
    assert all(len(np.unique(g.array(table))) <= 16 for table in tables)


def test_a_budget_leaves_out_what_costs_too_much(images: Images) -> None:
    result = graphopt.optimize(models.path("fashion_mlp"), cluster=4, max_drop="0.01%", **images)
    assert result.report.accuracy is not None
    kinds = {bool(layer.kept) for layer in result.report.pruned}
    if result.report.accuracy.achieved:
        assert result.report.accuracy.after.metric >= result.report.accuracy.before.metric * (1 - 1e-4)
    else:
        assert kinds == {False}
    assert all(layer.reason for layer in result.report.pruned if not layer.kept)


def test_without_data_it_says_so() -> None:
    report = graphopt.optimize(models.path("fashion_mlp"), cluster=8, measure=False).report
    assert any("pruned without data" in note for note in report.notes)
