"""Data files of a model that is replaced: removed when nobody can need them, named otherwise."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt import optimize
from graphopt.model import Model

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,64] x) => (float[N,64] y) { same = Identity(x)  y = MatMul(same, w) }"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with its weights beside it, in a file that graphopt did not name."""
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def run(source: Path, output: Path) -> list[str]:
    """Optimize; returns the notes of the report."""
    in_place = source == output
    report = optimize(source, output, in_place=in_place, verify=False, measure=False).report
    assert [output.with_name(name) for name in report.data_files] == list(Model.load(output).data_files)
    onnx.load(output)  # its weights are there
    return report.notes


def data(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".data")


def test_three_runs_leave_one_data_file(source: Path) -> None:
    out = source.with_name("out.onnx")
    assert run(source, out) == []
    assert "removed 'out.onnx.data'" in run(source, out)[0]
    run(source, out)
    assert len(data(source.parent)) == 1
    assert (source.parent / "weights.bin").exists()


def test_in_place_removes_what_graphopt_made_and_names_the_rest(source: Path) -> None:
    assert (
        "weights.bin', the weights of the file that was replaced, is still there: graphopt did not"
        in (run(source, source)[0])
    )
    run(source, source)
    run(source, source)
    assert len(data(source.parent)) == 1


def test_what_another_model_mentions_stays(source: Path) -> None:
    out = source.with_name("out.onnx")
    run(source, out)
    shutil.copy(out, source.with_name("copy.onnx"))
    assert "'copy.onnx' mentions it" in run(source, out)[0]
    onnx.load(source.with_name("copy.onnx"))


def test_what_the_input_needs_stays(source: Path) -> None:
    out = source.with_name("out.onnx")
    run(source, out)
    elsewhere = source.parent / "links"
    elsewhere.mkdir()
    shutil.copy(out, elsewhere / "in.onnx")
    os.link(out.with_name("out.onnx.data"), elsewhere / "out.onnx.data")
    assert "is still there: the input needs it" in run(elsewhere / "in.onnx", out)[0]


def test_a_model_with_other_names_keeps_its_weights(source: Path) -> None:
    out = source.with_name("out.onnx")
    run(source, out)
    os.link(out, source.with_name("name.bin"))
    assert "the model has other names" in run(source, out)[0]


def test_nothing_is_removed_for_what_was_no_model(source: Path) -> None:
    out = source.with_name("out.onnx")
    out.write_bytes(b"no model")
    out.with_name("out.onnx.data").write_bytes(b"somebody's")
    assert run(source, out) == []
    assert out.with_name("out.onnx.data").read_bytes() == b"somebody's"
