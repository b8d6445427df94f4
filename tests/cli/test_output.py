"""What the commands print: short text without control codes in a pipe, or one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from tools import cli_reference

from .conftest import TINY, Call, start

LONG = "a_very_long_folder_name_" * 4


def _json(text: str) -> dict[str, Any]:
    """The one object on stdout, which must be strictly valid."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def test_optimize_says_what_it_did(call: Call, tiny: Path) -> None:
    out = tiny.with_name("out.onnx")
    outcome = call("optimize", tiny, out, "--threads", 1)
    assert outcome.code == 0 and outcome.err == ""
    labels = [line.split("  ")[0] for line in outcome.out.splitlines()]
    assert {"nodes", "size", "latency", "load time", "memory", "verified", "wrote"} <= set(labels)
    assert "2 -> 1" in outcome.out and "synthetic" in outcome.out and "1 thread" in outcome.out
    assert "\x1b" not in outcome.out and max(map(len, outcome.out.splitlines())) <= max(
        80, len(str(out)) + 12
    )


def test_file_names_do_not_break_in_a_pipe(call: Call, tiny: Path) -> None:
    folder = tiny.parent / LONG
    folder.mkdir()
    outcome = call("optimize", tiny, folder / "out.onnx", "--no-verify", "--no-measure")
    assert str(folder / "out.onnx") in outcome.out


def test_names_that_nothing_answers_to_are_said(call: Call, tiny: Path) -> None:
    outcome = call("optimize", tiny, tiny.with_name("out.onnx"), "--keep", "Identity", "--keep", "Add_7")
    assert outcome.code == 0 and "2  (unchanged)" in outcome.out
    assert "called 'Add_7'" in outcome.out


def test_a_report_of_another_model_is_said(call: Call, tiny: Path, tmp_path: Path) -> None:
    report, other = tmp_path / "r.json", tiny.with_name("other.onnx")
    onnx.save(onnx.parser.parse_model(TINY.replace("same", "alike")), other)
    common = (tiny.with_name("out.onnx"), "--no-measure")
    assert call("optimize", tiny, *common, "--report", report).code == 0
    assert "--replay" not in call("optimize", tiny, *common, "--replay", report).out
    assert "1 of 1 rewrites" in call("optimize", other, *common, "--replay", report).out


def test_printed_graphs_stay_out_of_json(call: Call, tiny: Path) -> None:
    outcome = call("optimize", tiny, tiny.with_name("out.onnx"), "--print-after", "all", "--json")
    assert _json(outcome.out)["evidence"] == "verified"
    assert "after eliminate-identity (changed)" in outcome.err


def test_closed_stdout(tiny: Path) -> None:
    command = ["sh", "-c", f'"{sys.executable}" -m graphopt inspect "{tiny}" >&-']
    done = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_quiet(call: Call, tiny: Path) -> None:
    outcome = call("optimize", tiny, tiny.with_name("out.onnx"), "-q", "--no-measure")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_tables(call: Call, tiny: Path) -> None:
    outcome = call("optimize", tiny, tiny.with_name("out.onnx"), "--no-verify", "--stats", "--time-passes")
    assert "most frequent reasons" in outcome.out
    assert any(
        line.startswith("eliminate-identity") and line.endswith("1") for line in outcome.out.splitlines()
    )
    assert "not verified" in outcome.out


def test_optimize_json_and_report(call: Call, tiny: Path, tmp_path: Path) -> None:
    out = tiny.with_name("out.onnx")
    outcome = call("optimize", tiny, out, "--json", "--report", tmp_path / "r.json", "--no-measure")
    printed = _json(outcome.out)
    assert printed == _json((tmp_path / "r.json").read_text())
    assert printed["evidence"] == "verified"
    assert printed["before"]["nodes"] == 2 and printed["after"]["nodes"] == 1
    again = call("optimize", tiny, out, "--replay", tmp_path / "r.json", "--json", "--no-measure")
    assert _json(again.out)["rewrites"] == printed["rewrites"] != []


def test_verify(call: Call, tiny: Path) -> None:
    assert call("verify", tiny, tiny).code == 0
    found = _json(call("verify", tiny, tiny, "--json").out)
    assert found["ok"] is True and found["verdict"]["status"] == "verified"


def test_verify_reports_other_interfaces(call: Call, tiny: Path) -> None:
    other = tiny.with_name("other.onnx")
    onnx.save(
        onnx.parser.parse_model(TINY.replace("float[N,4] y", "float[N,4] z").replace("y =", "z =")), other
    )
    outcome = call("verify", tiny, other)
    assert outcome.code == 4
    assert "'y'" in outcome.out and "'z'" in outcome.out
    assert _json(call("verify", tiny, other, "--json").out)["verdict"] is None


def test_verify_ignores_metadata_but_says_so(call: Call, tiny: Path) -> None:
    model = onnx.load(tiny)
    model.producer_name = "someone"
    onnx.save(model, tiny.with_name("other.onnx"))
    outcome = call("verify", tiny, tiny.with_name("other.onnx"))
    assert outcome.code == 0 and "someone" in outcome.out


def test_bench(call: Call, tiny: Path) -> None:
    outcome = call("bench", tiny, tiny, "--threads", 1, "--shape", "x=2x4", "--shape", "x=3x4")
    assert outcome.code == 0 and "x 2x4" in outcome.out and "x 3x4" in outcome.out
    found = _json(call("bench", tiny, tiny, "--threads", 1, "--json").out)
    assert found["comparisons"][0]["before"]["median_ms"] > 0
    assert found["before"]["parameters"] == 4 and found["before"]["macs"] == 0


MATMUL = """<ir_version: 8, opset_import: ["" : 17], producer_name: "tests">
m (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
{ z = MatMul(x, w)  y = Relu(z) }"""


def test_inspect(call: Call, tiny: Path) -> None:
    onnx.save(onnx.parser.parse_model(MATMUL), tiny)
    unknown = call("inspect", tiny)
    assert "float[N,4]" in unknown.out and "unknown for 1 node" in unknown.out and "tests" in unknown.out
    found = _json(call("inspect", tiny, "--shape", "x=5x4", "--json", "--layers").out)
    assert found["macs"] == 5 * 4 * 3 and found["parameters"] == 12
    assert [layer["op"] for layer in found["layers"]] == ["MatMul", "Relu"]
    assert found["dynamic_dims"] == ["N"] and found["opsets"] == {"ai.onnx": 17}
    assert "layers" not in _json(call("inspect", tiny, "--json").out)
    assert "5×3" in call("inspect", tiny, "--shape", "x=5x4", "--layers").out


def test_inspect_lists_external_data(call: Call, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(MATMUL)
    weights = np.zeros((4, 3), np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    found = _json(call("inspect", tmp_path / "m.onnx", "--json").out)
    assert [Path(name).name for name in found["external_files"]] == ["w.bin"]


def test_passes(call: Call) -> None:
    assert "fuse-conv-bn" in call("passes").out
    names = [entry["name"] for entry in _json(call("passes", "--json").out)["passes"]]
    assert "fold-constants" in names
    found = _json(call("passes", "fold-constants", "--json").out)
    assert [(option["name"], option["default"]) for option in found["options"]] == [("max-growth", 0)]
    assert found["options"][0]["meaning"] and "max-growth" in call("passes", "fold-constants").out


@pytest.mark.parametrize("command", ["optimize", "verify", "bench", "inspect", "passes"])
def test_help_has_an_example(call: Call, command: str) -> None:
    outcome = call(command, "--help")
    assert outcome.code == 0 and f"Example: graphopt {command}" in outcome.out


def test_no_arguments_show_the_help(call: Call) -> None:
    outcome = call()
    assert outcome.code == 2 and "optimize" in outcome.out and "Exit codes" in outcome.out


def test_version(call: Call) -> None:
    assert call("--version").out.startswith("graphopt 0.")


def test_reader_that_goes_away() -> None:
    child = start("passes")
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.wait(timeout=60) == 0
    assert child.stderr.read() == ""


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("graphopt optimize a b --passes dedup", "deduplicate-initializers"),
        ("graphopt optimize a b --passes fold-constants,fuse-conv-b", "fold-constants,fuse-conv-bn"),
        ("graphopt optimize a b --target cu", "cuda"),
        ("graphopt passes freeze", "freeze-initializers"),
    ],
)
def test_completion(line: str, offered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_GRAPHOPT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    out, _ = start().communicate(timeout=60)
    assert out.splitlines() == [offered]


def _imported(code: str) -> set[str]:
    """The modules that a program of one line leaves imported."""
    code = f"import sys; sys.path[:0] = {sys.path!r}\n{code}\nprint(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_starting_imports_little() -> None:
    modules = _imported("import graphopt.console.cli")
    assert modules.isdisjoint({"onnx", "onnx_ir", "numpy", "rich.table", "onnxruntime", "sympy"})


def test_optimizing_imports_no_more_than_it_needs(tiny: Path) -> None:
    code = f"import graphopt; graphopt.optimize({str(tiny)!r}, verify=False, measure=False)"
    assert _imported(code).isdisjoint({"rich", "typer", "onnx_graphsurgeon", "onnxruntime"})


def test_reference_is_current() -> None:
    assert cli_reference.PAGE.read_text() == cli_reference.reference(), "run python -m tools.cli_reference"


def test_the_data_file_is_named(call: Call, heavy: Path) -> None:
    out = heavy.with_name("out.onnx")
    outcome = call("optimize", heavy, out, "--external-data", "--no-verify", "--no-measure")
    assert f"{out} and out.onnx.data" in " ".join(outcome.out.split())


def test_one_of_several_shapes_is_timed_and_that_is_said(call: Call, tiny: Path) -> None:
    shapes = "--shape", "x=2x4", "--shape", "x=3x4"
    outcome = call("optimize", tiny, tiny.with_name("out.onnx"), "--threads", 1, *shapes)
    assert "x paired ±" in outcome.out
    assert "at the first --shape only" in " ".join(outcome.out.split())
    assert "--shape" not in call("optimize", tiny, tiny.with_name("out.onnx"), *shapes[:2]).out


def test_bench_says_at_which_shape_operations_were_counted(call: Call, heavy: Path) -> None:
    out = call("bench", heavy, heavy, "--threads", 1, "--shape", "x=2x4", "--shape", "x=3x4").out
    assert next(line for line in out.splitlines() if line.startswith("MACs")).endswith(" at x 3x4")


def test_labels_among_the_samples_are_said_to_be_skipped(call: Call, tiny: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 4), np.float32), labels=np.arange(3))
    outcome = call("verify", tiny, tiny, "--data", tmp_path / "d.npz")
    assert outcome.code == 0, outcome
    assert "its array 'labels' is no input and was skipped" in " ".join(outcome.out.split())
