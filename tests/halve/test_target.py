"""Half precision where the target itself runs: kernels that are missing, and what it makes of the result.

The CPU stands in for it, under the name of another target.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import target
from graphopt.errors import WorkerError
from graphopt_passes.halve.trials import Judged, Trials
from tests.halve.support import BFLOAT16, FLOAT16, types
from tests.support import serialized
from tests.traps import kit


@pytest.fixture(autouse=True)
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(target.TARGETS, "cuda", target.Target("cuda", target.CPU.providers))


def product() -> onnx.ModelProto:
    text = "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }"
    weight = (np.random.default_rng(0).standard_normal((64, 64)) / 8).astype(np.float32)
    return kit.model(text, w=weight)


def lowered(precision: str) -> graphopt.Result:
    return graphopt.optimize(product(), precision=precision, target="cuda", measure=False, threads=1)


def test_operators_without_kernels_stay_float_and_are_named() -> None:
    result = lowered("bf16")
    reasons = {layer.op: layer.reason for layer in result.report.layers}
    assert reasons["MatMul"] == "ONNX Runtime has no kernel for it in bfloat16 on cuda"
    assert BFLOAT16 not in types(serialized(result.model)).values()


def test_the_result_is_judged_as_the_target_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU rounds fewer values than the emulation that chooses, so that its noise is lower."""
    rounded: list[Judged] = []
    original = Trials.judged

    def watched(self: Trials, kept: Collection[str]) -> Judged:
        rounded.append(original(self, kept))
        return rounded[-1]

    monkeypatch.setattr(Trials, "judged", watched)
    accuracy = lowered("fp16").report.accuracy
    assert accuracy is not None and accuracy.achieved
    emulated, found = (score.outputs[0].sqnr_db for score in (rounded[-1].score, accuracy.after))
    assert emulated is not None and found is not None and found > emulated + 0.1


def test_what_the_target_makes_noise_of_is_not_emitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Trials, "executed", lambda _, one, *__: replace(one, holds=False, reason="'y' is lost")
    )
    result = lowered("fp16")
    assert any(
        note.endswith("run in float16, the result misses the budget: 'y' is lost")
        for note in result.report.notes
    )
    assert FLOAT16 not in types(serialized(result.model)).values()
    assert {layer.reason for layer in result.report.layers} == {"nothing of it was kept"}


def test_what_the_target_cannot_run_is_not_emitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Trials, one: Judged, path: Path) -> Judged:
        raise WorkerError("no such kernel", "failed")

    monkeypatch.setattr(Trials, "executed", fails)
    result = lowered("fp16")
    assert any("ONNX Runtime cannot run it: no such kernel" in note for note in result.report.notes)


def contrib(first: str) -> onnx.ModelProto:
    """Products with an operator of ONNX Runtime's own between them."""
    body = f"a = MatMul(x, w)  b = com.microsoft.{first}  y = MatMul(b, w)"
    weight = (np.random.default_rng(0).standard_normal((64, 64)) / 8).astype(np.float32)
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[N,64] x) => (float[N,64] y) {{ {body} }}"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return proto


@pytest.mark.parametrize("node", ["FusedMatMul(a, w)", "FastGelu(a)"])
def test_so_do_those_that_the_runtime_replaces_by_others(node: str) -> None:
    """It names a part of FastGelu, which no node of the model is."""
    result = graphopt.optimize(contrib(node), precision="bf16", target="cuda", measure=False, threads=1)
    reasons = {layer.op: layer.reason for layer in result.report.layers}
    assert reasons[node.partition("(")[0]] == "ONNX Runtime has no kernel for it in bfloat16 on cuda"
    assert not any("Could not find" in note for note in result.report.notes)


def test_a_converted_interface_is_judged_with_its_rounding() -> None:
    """The result that is run here has another interface, and is better."""
    scores = {}
    for converted in (False, True):
        options = {"measure": False, "threads": 1, "convert_io": converted}
        result = graphopt.optimize(product(), precision="fp16", target="cuda", **options)
        assert result.report.accuracy is not None
        scores[converted] = result.report.accuracy.after.outputs[0].sqnr_db
    assert scores[True] < scores[False] - 0.1
