"""Lower precision on the command line: what is asked must make sense, and reports say what it costs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.console import precision, summary, terminal
from graphopt.errors import UsageError
from graphopt.options import Options
from graphopt.plain import plain, to_json
from graphopt.proof.accuracy import OutputScore, Score
from graphopt.report import AccuracyReport, LayerReport, Report

from .conftest import Call

INT8 = ["--precision", "int8", "--data", "synthetic"]
DYNAMIC = ["--precision", "int8-dynamic"]

CONFLICTS = {
    "eval alone": (["--eval", "test.npz"], "--eval needs --precision"),
    "max-drop alone": (["--max-drop", "1%"], "--max-drop needs --precision"),
    "ranges alone": (["--ranges", "kl"], "--ranges needs --precision"),
    "memory alone": (["--calibration-memory", "100"], "--calibration-memory needs --precision"),
    "saving alone": (["--save-calibration", "c.json"], "--save-calibration needs --precision"),
    "unknown precision": (["--precision", "int4"], "int8, int8-dynamic"),
    "unknown ranges": ([*INT8, "--ranges", "entropy"], "auto, minmax, percentile, kl, mse"),
    "no data": (["--precision", "int8"], "--data"),
    "a dynamic way out": (["--precision", "int8"], "int8-dynamic"),
    "calibrating dynamically": ([*DYNAMIC, "--ranges", "kl"], "--ranges"),
    "limiting what is not calibrated": ([*DYNAMIC, "--calibration-limit", "9"], "--calibration-limit"),
    "no such evaluation": ([*DYNAMIC, "--eval", "none.npz"], "none.npz"),
    "no such calibration": ([*INT8, "--calibration", "none.json"], "none.json"),
    "calibration without a judge": (["--precision", "int8", "--calibration", "{tiny}"], "--data"),
    "loading and saving": (
        [*INT8, "--calibration", "{tiny}", "--save-calibration", "{folder}/c.json"],
        "leave one of them out",
    ),
    "unreadable budget": ([*INT8, "--max-drop", "much"], "0.5%"),
    "an amount of nothing": ([*INT8, "--max-drop", "0.5"], "there is none"),
    "calibration over the model": ([*INT8, "--save-calibration", "{tiny}"], "tiny.onnx"),
    "report over the calibration": (
        [*INT8, "--save-calibration", "{folder}/c.json", "--report", "{folder}/c.json"],
        "would overwrite the calibration",
    ),
    "calibration in no folder": ([*INT8, "--save-calibration", "{folder}/none/c.json"], "none"),
    "no samples": ([*INT8, "--calibration-limit", "0"], "--calibration-limit"),
    "no memory": ([*INT8, "--calibration-memory", "0"], "--calibration-memory"),
}


@pytest.mark.parametrize(("arguments", "told"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_options_that_make_no_sense(call: Call, tiny: Path, arguments: list[str], told: str) -> None:
    names = {"{tiny}": str(tiny), "{folder}": str(tiny.parent)}
    for name, path in names.items():
        arguments = [text.replace(name, path) for text in arguments]
    before = tiny.read_bytes()
    outcome = call("optimize", tiny, tiny.with_name("out.onnx"), *arguments)
    assert outcome.code == 2, outcome
    assert told in outcome.err
    assert outcome.err.count("\n") == 1
    assert tiny.read_bytes() == before
    assert list(tiny.parent.iterdir()) == [tiny]


def test_options_that_make_sense(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=np.zeros((2, 4), np.float32))
    (tmp_path / "c.json").write_text("{}")
    test = str(tmp_path / "test.npz")
    Options(precision="int8", data=test)
    Options(precision="int8", data=test, calibration=tmp_path / "c.json", eval=test)
    Options(precision="int8-dynamic", eval="module:function", max_drop="0.5")
    assert str(Options(precision="int8-dynamic", eval=len, max_drop="2").budget) == "2"
    assert str(Options().budget) == "0.5 %"


def test_limits_of_calibration_hold_in_python_too() -> None:
    for wrong in ({"calibration_limit": 0}, {"calibration_memory": 0}):
        with pytest.raises(UsageError, match="--calibration"):
            Options(precision="int8", data="synthetic", **wrong)


def test_help_has_a_panel_and_examples(call: Call) -> None:
    text = re.sub(r"\s+", " ", call("optimize", "--help").out)
    assert "─ Precision ─" in text
    assert "--precision int8 --data calib.npz --eval test.npz --max-drop 0.5%" in text


OUTPUT = OutputScore("logits", 22.1, 0.9925, 2000)
BEFORE = Score(2000, float("inf"), 1.0, (OUTPUT,), 0, float("inf"), 91.55, "top-1 accuracy (%)", None, 2000)
AFTER = Score(2000, 22.1, 0.9925, (OUTPUT,), 17, 8.3, 91.5, "top-1 accuracy (%)", 0.09, 2000, 8, 7)
ACCURACY = AccuracyReport(
    BEFORE, AFTER, "0.5 %", True, "91.55 -> 91.5", "2000 samples of test.npz", 1000, 2000, int8_macs=0.87
)
REVERTED = LayerReport("head", "Gemm", "float32", reason="does not pay")
LAYERS = [
    LayerReport(
        f"/model/encoder/layers.{i}/attention/MatMul_output_0",
        "MatMul",
        "int8",
        sqnr_db=40 - i,
        clipped=0.00123,
        low=-1234.5,
        high=0.0001234,
        method="percentile",
        fused=True,
        float_ms=0.012345,
        int8_ms=123.456,
    )
    for i in range(14)
]


def report(*layers: LayerReport, **facts: object) -> Report:
    found = Report("in.onnx", "out.onnx", "", "cpu", layers=list(layers))
    return replace(found, **facts)  # type: ignore[arg-type]


def told(found: Report, verbose: int = 0) -> str:
    return "\n".join(f"{label}: {text}" for label, text in summary.facts(found, verbose))


def test_the_ten_noisiest_layers_come_first() -> None:
    rows = list(precision.layer_rows(report(*LAYERS, REVERTED), verbose=0))
    assert [row[2] for row in rows] == [f"{27 + i:.1f}" for i in range(10)]
    every = list(precision.layer_rows(report(*LAYERS, REVERTED), verbose=1))
    assert len(every) == 14
    assert every[0][0] == LAYERS[-1].name
    assert "percentile" in every[0]
    assert {len(row) for row in every} == {len(precision.layer_head(1))}
    assert {len(row) for row in rows} == {len(precision.layer_head(0))}


def test_the_table_reads_on_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal.print_report(report(*LAYERS, accuracy=ACCURACY), time_passes=False, stats=False, verbose=0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "-1234 to 0.00012   0.012 -> 123" in lines[2]
    assert sum("attention/MatMul" in line for line in lines) == 10  # no name is broken


def test_what_it_costs_is_said_with_its_evidence() -> None:
    text = told(report(*LAYERS, REVERTED, accuracy=ACCURACY))
    assert "accuracy: 91.55 -> 91.5: within the budget of 0.5 %" in text
    assert "8 lost and 7 gained of 2,000 labels" in text
    assert "agreement 99.25%; SQNR 22.1 dB; worst sample 17 with 8.3 dB" in text
    assert "judged on 2000 samples of test.npz; calibrated on 1,000 samples" in text
    assert "int8: 14 of 15 layers, 87% of the MACs" in text
    assert "as it was: Gemm at head: does not pay" in text


def test_a_missed_budget_and_drawn_samples_are_said() -> None:
    text = told(report(accuracy=replace(ACCURACY, achieved=False, synthetic=True)))
    assert "not achieved within" in text
    assert "synthetic, so accuracy on real data is not known" in text


def test_layers_that_do_not_fuse_are_named() -> None:
    assert "not fused: MatMul at m: runs as separate kernels" in told(
        report(LayerReport("m", "MatMul", "int8", fused=False))
    )


def test_a_report_without_lower_precision_says_nothing_of_it() -> None:
    assert "accuracy" not in told(report())
    assert "int8" not in told(report())
    assert not list(precision.layer_rows(report(), 0))


def test_layers_without_numbers_make_no_table() -> None:
    weight = LayerReport("w", "MatMul", "int4", method="gptq", block=32)
    assert not list(precision.layer_rows(report(weight), verbose=0))
    assert [row[0] for row in precision.layer_rows(report(weight), verbose=1)] == ["w"]


def test_weights_are_counted_by_what_they_became() -> None:
    layers = [
        LayerReport("a", "MatMul", "int4", block=32, bytes_before=4000, bytes_after=600),
        LayerReport("b", "Gather", "int8", block=128, bytes_before=2000, bytes_after=600),
        LayerReport("a_scales", "MatMulNBits", "float16", bytes_before=400, bytes_after=200),
        LayerReport("c", "Conv", "float32", bytes_before=4000, bytes_after=4000, reason="because"),
    ]
    text = told(report(*layers))
    assert "weights: 1 int4, 1 int8, 1 float32; 10.0 kB -> 5.20 kB (-48 %)" in text
    assert "stored: 1 float16; 400 B -> 200 B (-50 %)" in text
    assert "as it was: Conv at c: because" in text and "int8: " not in text
    assert "stored" not in told(report(layers[-1]))  # nothing is


def test_json_holds_every_layer_and_both_scores() -> None:
    read = json.loads(to_json(report(*LAYERS, REVERTED, accuracy=ACCURACY).to_dict()))
    assert [layer["name"] for layer in read["layers"]] == [layer.name for layer in (*LAYERS, REVERTED)]
    assert read["layers"][-1] == plain(REVERTED)
    assert read["accuracy"]["after"]["lost"] == 8
    assert read["accuracy"]["before"]["sqnr_db"] == "inf"


# Runs.


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Its two classes differ by less than eight bits can tell; with it come samples and labels."""
    rng = np.random.default_rng(0)
    hidden, x = rng.standard_normal((8, 16)), rng.standard_normal((60, 8)).astype(np.float32)
    last = np.repeat(rng.standard_normal((16, 1)), 2, axis=1) + 1e-5 * rng.standard_normal((16, 2))
    text = "agraph (float[N,8] x) => (float[N,2] y) { a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, v) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, array in (("w", hidden), ("v", last)):
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    np.savez(tmp_path / "data.npz", x=x)
    test = x[::2] + np.float32(0.1)
    labels = (np.maximum(test @ hidden, 0) @ last).argmax(axis=1)
    np.savez(tmp_path / "test.npz", x=test, labels=labels)
    np.savez(tmp_path / "misfit.npz", x=x[:, :7])
    return path


def arguments(model: Path, *more: str) -> list[object]:
    """Quantize it without measuring, judged by the labels."""
    test, data = (model.with_name(name) for name in ("test.npz", "data.npz"))
    given = ["--precision", "int8", "--data", data, "--eval", test, "--no-measure"]
    return ["optimize", model, model.with_name("out.onnx"), *given, *more]


def test_a_quantized_model_is_written_and_described(call: Call, classifier: Path) -> None:
    outcome = call(*arguments(classifier, "--max-drop", "100%", "--json"))
    assert outcome.code == 0, outcome
    read = json.loads(outcome.out)
    assert {layer["precision"] for layer in read["layers"]} == {"int8"}
    assert read["accuracy"]["achieved"] is True
    assert read["accuracy"]["before"]["metric"] == 100
    assert read["accuracy"]["calibration_samples"] == 60
    assert read["accuracy"]["evaluation_samples"] == 30
    nodes = {node.op_type for node in onnx.load(classifier.with_name("out.onnx")).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "MatMul"} <= nodes


def test_a_missed_budget_is_no_failure(call: Call, classifier: Path) -> None:
    outcome = call(*arguments(classifier, "--max-drop", "0%"))
    assert outcome.code == 0, outcome
    assert "int8 not achieved, the model stays as it is" in re.sub(r"\s+", " ", outcome.out)
    assert "not achieved within" in re.sub(r"\s+", " ", outcome.out)
    nodes = [node.op_type for node in onnx.load(classifier.with_name("out.onnx")).graph.node]
    assert nodes == ["MatMul", "Relu", "MatMul"]


def test_strict_wants_the_budget_kept(call: Call, classifier: Path) -> None:
    outcome = call(*arguments(classifier, "--max-drop", "0%", "--strict"))
    assert outcome.code == 4, outcome
    assert outcome.err.count("\n") == 1
    assert "--strict writes nothing" in outcome.err
    assert not classifier.with_name("out.onnx").exists()


def test_data_that_does_not_fit_names_the_input(call: Call, classifier: Path) -> None:
    misfit = str(classifier.with_name("misfit.npz"))
    outcome = call(*arguments(classifier, "--data", misfit))
    assert outcome.code == 5, outcome
    assert "'x'" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not classifier.with_name("out.onnx").exists()


def test_halves_are_counted_under_their_name_and_listed_if_noisy() -> None:
    halves = [LayerReport(f"n{i}", "MatMul", "float16", sqnr_db=30.0 if i == 2 else None) for i in range(4)]
    found = report(*halves, REVERTED, precision="fp16")
    assert "fp16: 4 of 5 layers" in told(found)
    assert [row[0] for row in precision.layer_rows(found, verbose=0)] == ["n2"]
