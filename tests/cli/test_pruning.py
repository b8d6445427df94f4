"""Pruning on the command line: what is asked must make sense, and the ledger says what was removed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from graphopt.console import pruning, summary, terminal
from graphopt.plain import to_json
from graphopt.proof.accuracy import OutputScore, Score
from graphopt.report import AccuracyReport, PrunedLayer, Report

from .conftest import Call

CONFLICTS = {
    "nothing to prune": (["prune"], "nothing to prune"),
    "no share": (["prune", "--channels", "much"], "0.5, 50% or auto"),
    "no group": (["prune", "--sparsity", "4:2"], "--sparsity 4:2"),
    "no such objective": (["optimize", "--rank", "0.5", "--objective", "fun"], "latency, macs, size"),
    "codebooks of 3 bits": (["optimize", "--cluster", "3"], "4, 8"),
    "no such selection": (["prune", "--channels", "0.5", "--select", "luck"], "obs, lasso"),
}


@pytest.mark.parametrize(("arguments", "told"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_options_that_make_no_sense(call: Call, tiny: Path, arguments: list[str], told: str) -> None:
    command, *options = arguments
    outcome = call(command, tiny, tiny.with_name("out.onnx"), *options)
    assert outcome.code == 2, outcome
    assert told in outcome.err and outcome.err.count("\n") == 1
    assert list(tiny.parent.iterdir()) == [tiny]


def test_help_has_a_panel_and_examples(call: Call) -> None:
    text = re.sub(r"\s+", " ", call("prune", "--help").out)
    assert "─ Pruning ─" in text
    assert "graphopt prune model.onnx out.onnx --rank auto" in text


def test_a_model_with_nothing_to_prune_is_written_as_it_is_with_the_reason(call: Call, tiny: Path) -> None:
    outcome = call("prune", tiny, tiny.with_name("out.onnx"), "--rank", "auto", "--no-measure")
    assert outcome.code == 0, outcome
    text = re.sub(r"\s+", " ", outcome.out)
    assert "--rank not achieved, the model stays as it is" in text
    assert tiny.with_name("out.onnx").exists()


def test_strict_writes_nothing_then(call: Call, tiny: Path) -> None:
    outcome = call("prune", tiny, tiny.with_name("out.onnx"), "--rank", "auto", "--no-measure", "--strict")
    assert outcome.code == 4
    assert "--rank is not achieved" in outcome.err
    assert list(tiny.parent.iterdir()) == [tiny]


LAYERS = [
    PrunedLayer(
        f"/model/encoder/layers.{i}/attention/MatMul_output_0",
        "MatMul",
        "sparsity",
        "123,456 of 246,912 weights",
        0.01 * i,
        246912,
        246912,
        1000,
        1000,
        1.234,
        1.235,
    )
    for i in range(14)
]
RANK = PrunedLayer("head", "Gemm", "rank", "rank 16 of 96", 0.5, 1000, 400, 1000, 400)
WHOLE = PrunedLayer("tail", "Gemm", "rank", reason="too thin for rank 16")
SCORE = Score(9, 20.0, 0.99, (OutputScore("y", 20.0, 0.99, 9),))
ACCURACY = AccuracyReport(SCORE, SCORE, "none", True, "91.5 -> 90", "9 samples", 9, 9)


def report(*layers: PrunedLayer) -> Report:
    found = Report("in.onnx", "out.onnx", "", "cpu", pruned=list(layers))
    return replace(found, accuracy=ACCURACY)


def test_the_ledger_reads_on_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal.print_report(report(*LAYERS), time_passes=False, stats=False, verbose=0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("attention/MatMul" in line for line in lines) == 10
    assert "13.00%" in lines[2]  # the largest error comes first


def test_every_row_has_as_many_cells_as_the_head() -> None:
    for verbose, count in ((0, 11), (1, 14)):
        for layers in (LAYERS, [replace(one, ms_before=None, ms_after=None) for one in LAYERS]):
            rows = list(pruning.rows(report(*layers), verbose))
            assert len(rows) == count
            assert {len(row) for row in rows} == {len(pruning.head(report(*layers), verbose))}
    assert next(iter(list(pruning.rows(report(*LAYERS), 0))[-1])) == "and 4 more (-v)"


def test_what_is_left_is_summed_up_and_what_stays_has_its_reason() -> None:
    text = "\n".join(f"{label}: {told}" for label, told in summary.facts(report(RANK, WHOLE), 0))
    assert (
        "rank: 1 of 2 layers, their weights 1.00 k -> 400 (-60 %), their MACs 1.00 k -> 400 (-60 %)" in text
    )
    assert "not pruned: rank at tail: too thin for rank 16" in text
    assert "91.5 -> 90: what was asked for, at any cost; --max-drop bounds it" in text


def test_json_holds_the_ledger() -> None:
    read = json.loads(to_json(report(RANK, WHOLE).to_dict()))
    assert [layer["kept"] for layer in read["pruned"]] == ["rank 16 of 96", ""]
    assert read["pruned"][1]["reason"] == "too thin for rank 16"
