"""Samples on a shelf are the samples that were put there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from graphopt.activations import Collector, Request
from graphopt.errors import SystemRefusedError
from graphopt.model import Model
from graphopt.runtime.accumulators import Extent
from graphopt.runtime.values import FileRange, Tensor
from graphopt.runtime.worker import Worker
from graphopt.samples import shelf
from graphopt.samples.shelf import shelved
from tests.support import parse


def test_tensors_of_all_types_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = [rng.standard_normal(3000), rng.standard_normal((7, 501)).astype(ml_dtypes.bfloat16)]
    sample = {f"x{i}": Tensor.of(array) for i, array in enumerate(numbers)}
    sample["names"] = Tensor.of(np.array([["a", "b"]] * 3000))
    sample["few"] = Tensor.of(np.arange(3))
    found = shelved([sample, sample], tmp_path)
    assert len(found) == 2
    for one in found:
        assert list(one) == list(sample)
        for name, value in one.items():
            assert isinstance(value, Tensor)
            assert isinstance(value.data, FileRange) == name.startswith("x")
            np.testing.assert_array_equal(value.numpy(), sample[name].numpy())


def test_what_is_no_tensor_stays(tmp_path: Path) -> None:
    sample = {"list": [Tensor.of(np.zeros(9))], "none": None, "map": {1: 2.0}}
    assert shelved([sample], tmp_path) == [sample]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shelf, "write_all", full)
    with pytest.raises(SystemRefusedError, match="cannot keep samples"):
        shelved([{"x": Tensor.of(np.zeros(5000))}], tmp_path)


def test_an_input_that_is_an_output_is_read_before_its_memory_goes(tmp_path: Path) -> None:
    """ONNX Runtime gives such an output in the memory of what was fed: here a map that ends with the feed."""
    model = Model.of(parse("g (float[300,500] x) => (float[300,500] x, float[300,500] y) { y = Neg(x) }"))
    path = tmp_path / "model.onnx"
    model.save(path)
    x = np.random.default_rng(0).standard_normal((300, 500), dtype=np.float32)
    samples = shelved([{"x": Tensor.of(x + np.float32(i))} for i in range(6)], tmp_path)
    with Worker(time_limit=60) as worker, worker.opened(path) as session:
        for i, sample in enumerate(samples):
            found = worker.run(session, sample)["x"]
            assert isinstance(found, Tensor)
            np.testing.assert_array_equal(found.numpy(), x + np.float32(i))
        statistics = Collector(worker, threads=1).collect(model, [Request("x", Extent())], samples)
    extent = statistics.get("x", Extent())
    assert (extent.low.item(), extent.high.item()) == (x.min(), (x + np.float32(5)).max())
