"""Saved calibrations come back bit by bit, and only for the model and the samples that they were made of."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from graphopt.activations import Collector, Request
from graphopt.calibration import Calibration, Fingerprint
from graphopt.errors import DataError, UsageError
from graphopt.model import Model
from graphopt.runtime.accumulators import Extent, Histogram
from graphopt.runtime.grid_errors import GridErrors, Steps
from graphopt.runtime.means import Mean
from graphopt.runtime.moments import Moments, Patches
from graphopt.runtime.worker import Worker
from tests.support import parse

REQUESTS = [
    Request("x", Extent(1)),
    Request("h", Histogram(128)),
    Request("h", Mean(-1)),
    Request("y", GridErrors((Steps(0.1, 3, 0, 255), Steps(0.2, 0, -128, 127)), 1)),
    Request("x", Moments(4)),
    Request("h", Moments(3, patches=Patches((3,), (1,), (1,), (0, 0)))),  # h has no spatial axis
    Request("nothing", Extent()),
]


def _model(op="Relu", factor=1.0):
    proto = parse(
        f"g (float[n,4] x, float[4,1024] w) => (float[n,1024] y) {{ h = MatMul(x, w)  y = {op}(h) }}"
    )
    del proto.graph.input[1]
    weight = np.random.default_rng(0).standard_normal((4, 1024)) * factor
    proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    return Model.of(proto)


def _samples(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((2, 4)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def collector():
    with Worker() as worker:
        yield Collector(worker, threads=1)


class _Asleep(Collector):
    """Gathers nothing: the test fails if it is asked."""

    def collect(self, model, requests, samples):
        raise AssertionError("statistics that were saved are gathered again")


@pytest.fixture
def saved(collector, tmp_path):
    calibration = Calibration(_model(), _samples(), collector)
    calibration.gather(REQUESTS)
    calibration.save(tmp_path / "calibration.json")
    return calibration, tmp_path / "calibration.json"


def _assert_same(a, b):
    assert (a.absent, a.samples) == (b.absent, b.samples)
    assert a.found.keys() == b.found.keys()
    for request, one in a.found.items():
        other = b.found[request]
        assert type(one) is type(other)
        for name, content in vars(one).items():
            np.testing.assert_array_equal(content, vars(other)[name])
            assert getattr(content, "dtype", None) == getattr(vars(other)[name], "dtype", None)


def test_statistics_come_back(saved, collector):
    calibration, path = saved
    again = Calibration(_model(), _samples(), _Asleep(collector.worker))
    again.load(path)
    _assert_same(calibration.statistics, again.gather(REQUESTS))
    assert len(calibration.statistics.found) == 5 and len(calibration.statistics.absent) == 2
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, f"{path.name}.npz"}


def test_only_what_is_missing_is_gathered(saved, collector):
    calibration, path = saved
    again = Calibration(_model(), _samples(), collector)
    again.load(path)
    asked = again.gather([Request("y", Extent()), REQUESTS[0]])
    assert list(asked.found) == [Request("y", Extent()), REQUESTS[0]]
    assert set(again.statistics.found) == {*calibration.statistics.found, Request("y", Extent())}


@pytest.mark.parametrize(
    ("model", "samples", "differs"),
    [
        (_model("Abs"), _samples(), "the model's graph changed"),
        (_model(factor=2.0), _samples(), "the model's weights changed"),
        (_model(), _samples(seed=1), "the data changed"),
        (_model(), _samples(2), "the data changed"),
        (_model("Abs", 2.0), _samples(4), "the model's graph, the model's weights, the data changed"),
    ],
)
def test_what_differs_is_said(saved, collector, model, samples, differs):
    calibration = Calibration(model, samples, collector)
    with pytest.raises(DataError, match=f"does not fit: {differs} since"):
        calibration.load(saved[1])
    assert not calibration.statistics.found


@pytest.mark.parametrize("damage", ["text", "cut", "arrays", "no arrays"])
def test_damaged_files(saved, collector, damage):
    path = saved[1]
    arrays = path.with_name(f"{path.name}.npz")
    if damage == "text":
        path.write_text("[]")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "arrays":
        arrays.write_bytes(arrays.read_bytes()[:-100])
    else:
        arrays.unlink()
    with pytest.raises(DataError, match=r"no readable calibration.*calibrate again"):
        Calibration(_model(), _samples(), collector).load(path)


def test_paths(saved, collector, tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        saved[0].load(tmp_path / "none.json")
    with pytest.raises(UsageError, match="does not exist"):
        saved[0].save(tmp_path / "none" / "calibration.json")


def test_fingerprint_names_its_data():
    print_ = Fingerprint.of(_model(), _samples())
    assert (print_.source, print_.count) == ("samples", 3)
    assert print_.differences(Fingerprint.of(_model(), _samples())) == ""
