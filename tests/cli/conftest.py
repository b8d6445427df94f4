"""Runs the command line in this process (fast) or in its own (signals, limits), on a tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.console import cli

TINY = """<ir_version: 8, opset_import: ["" : 17]>
tiny (float[N,4] x) => (float[N,4] y) <float[4] w = {1,2,3,4}>
{ same = Identity(x)  y = Add(same, w) }"""

HEAVY = """<ir_version: 8, opset_import: ["" : 17]>
heavy (float[N,4] x) => (float[N,1] y) { z = MatMul(x, w)  y = ReduceMax<axes = [1]>(z) }"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """``graphopt ARGUMENTS`` in this process."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["graphopt", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(exit.value.code or 0), captured.out, captured.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """``graphopt ARGUMENTS`` in a process of its own, with this one's search path."""
    command = [sys.executable, "-m", "graphopt", *map(str, arguments)]
    search_path = os.pathsep.join(path for path in sys.path if path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": search_path}
    return subprocess.Popen(command, text=True, env=environment, **{**pipes, **options})  # type: ignore[call-overload]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model of two nodes; its folder holds nothing else."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "tiny.onnx"
    onnx.save(onnx.parser.parse_model(TINY), path)
    return path


@pytest.fixture
def heavy(tiny: Path) -> Path:
    """A model with 4 MB of weights in place of the tiny one."""
    model = onnx.parser.parse_model(HEAVY)
    weights = np.random.default_rng(0).standard_normal((4, 1 << 18)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    path = tiny.with_name("heavy.onnx")
    tiny.unlink()
    onnx.save(model, path)
    return path
