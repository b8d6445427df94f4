"""Files of models that nobody keeps: whole models, whose weights are on the disk once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from graphopt.errors import SystemRefusedError
from graphopt.model import Model
from graphopt.storage import pool as pools
from graphopt.storage.pool import Pool
from graphopt.storage.spill import Spill
from tests.support import compute, parse

RNG = np.random.default_rng(0)
LARGE, SMALL = (200, 300), (300, 20)  # 240 kB, 24 kB
TEXT = "g (float[3,200] x) => (float[3,20] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"


def source(tmp_path: Path) -> Path:
    proto = parse(TEXT.replace("x) =>", "x, float[200,300] w, float[300,20] v) =>"))
    for name, shape in (("w", LARGE), ("v", SMALL)):
        data = RNG.standard_normal(shape, dtype=np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(data, name))
    del proto.graph.input[1:]
    path = tmp_path / "source.onnx"
    onnx.save(proto, path)
    return path


def folder(tmp_path: Path) -> Path:
    return tmp_path / "pool"


def test_the_file_is_the_model(tmp_path: Path) -> None:
    path = source(tmp_path)
    written = Pool(folder(tmp_path)).write(Model.load(path))
    feeds = {"x": RNG.standard_normal((3, 200), dtype=np.float32)}
    expected = compute(onnx.load(path), feeds)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    found = ort.InferenceSession(written, options).run(None, feeds)
    np.testing.assert_array_equal(found[0], expected[0])


def test_weights_of_many_variants_are_stored_once(tmp_path: Path) -> None:
    model, home = Model.load(source(tmp_path)), folder(tmp_path)
    pool = Pool(home)
    paths = []
    for turn in range(3):
        variant = model.clone()
        variant.ir.graph.doc_string = str(turn)
        paths.append(pool.write(variant))
    assert (home / "weights").stat().st_size < 1.1 * 4 * 200 * 300
    assert all(path.stat().st_size < 40_000 for path in paths)
    assert [Model.load(path).ir.graph.doc_string for path in paths] == ["0", "1", "2"]


def test_a_new_weight_is_added_and_old_files_stay_right(tmp_path: Path) -> None:
    model = Model.load(source(tmp_path))
    pool = Pool(folder(tmp_path))
    first = pool.write(model)
    old = model.ir.graph.initializers["w"].const_value
    assert old is not None
    other, new = model.clone(), RNG.standard_normal(LARGE, dtype=np.float32)
    other.ir.graph.initializers["w"].const_value = Spill().keep(ir.Tensor(new, name="w"))
    second = pool.write(other)
    for path, expected in ((first, old.numpy()), (second, new)):
        found = Model.load(path).ir.graph.initializers["w"].const_value
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), expected)


def test_a_file_can_be_removed_without_the_weights_of_others(tmp_path: Path) -> None:
    model, pool = Model.load(source(tmp_path)), Pool(folder(tmp_path))
    with pool.written(model) as path:
        kept = pool.write(model)
        assert path.exists()
    assert not path.exists()
    onnx.checker.check_model(kept, full_check=True)
    assert onnx.load(kept).graph.initializer[0].raw_data


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pools, "write_tensor", full)
    with pytest.raises(SystemRefusedError, match="TMPDIR"):
        Pool(folder(tmp_path)).write(Model.load(source(tmp_path)))
