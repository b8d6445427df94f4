"""Load and save of an untouched model keeps its meaning: on onnx.backend.test and on real models."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx.backend.test import loader

from graphopt.model import Model
from tests.conformance.canonical import canonical
from tools.models import ROOT, cache_folder

FOLDERS = ("simple", "pytorch-converted", "pytorch-operator")


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files that nobody keeps need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def node_models() -> Iterator[tuple[str, onnx.ModelProto]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        cases = loader.load_model_tests(kind="node")
    return ((case.name, case.model) for case in cases)


def stored_models(kind: str) -> Iterator[Path]:
    data = Path(loader.DATA_DIR)
    return iter(sorted((data / kind).rglob("*.onnx")))


def check_round_trip(source: Path, target: Path) -> None:
    model = Model.load(source)
    assert canonical(model.clone().skeleton()) == canonical(model.skeleton()), f"{source}: the clone differs"
    model.save(target)
    expected, actual = onnx.load(source), onnx.load(target)
    drop_stale(expected.graph)
    assert canonical(expected) == canonical(actual), f"{source}: changed by load and save"
    assert target.stat().st_size == model.file_size()


def drop_stale(graph: onnx.GraphProto) -> None:
    """Remove value_info of values that the graph no longer has."""
    names = {value.name for field in (graph.input, graph.initializer) for value in field}
    names |= {name for node in graph.node for name in node.output}
    kept = [info for info in graph.value_info if info.name in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def test_node_cases(tmp_path: Path) -> None:
    count = 0
    for name, proto in node_models():
        source = tmp_path / f"{name}.onnx"
        source.write_bytes(proto.SerializeToString())
        check_round_trip(source, tmp_path / "out.onnx")
        source.unlink()
        count += 1
    assert count > 1500


@pytest.mark.parametrize("kind", [*FOLDERS, "light"])
def test_stored_models(kind: str, tmp_path: Path) -> None:
    paths = list(stored_models(kind))
    assert paths
    for path in paths:
        check_round_trip(path, tmp_path / "out.onnx")


REAL = sorted(ROOT.glob("models/*.onnx")) + sorted(cache_folder().glob("*.onnx"))


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_models(path: Path, tmp_path: Path) -> None:
    """The committed models, and those that tools/models.py has fetched."""
    check_round_trip(path, tmp_path / "out.onnx")


def test_a_model_in_memory_is_not_changed() -> None:
    for name, proto in node_models():
        before = proto.SerializeToString(deterministic=True)
        model = Model.of(proto)
        assert canonical(model.skeleton()) == canonical(proto), name
        for value in model.ir.graph.inputs:
            value.name = f"{value.name}_renamed"
        assert proto.SerializeToString(deterministic=True) == before, name
