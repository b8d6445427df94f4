"""``--precision int8`` from end to end, in Python; whether int8 pays is given, never measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from graphopt.activations import Collector, Request
from graphopt.case import Case
from graphopt.compiler import Result, optimize
from graphopt.errors import DataError, ParityError
from graphopt.model import Model
from graphopt.precision import Task, Trial
from graphopt.proof import measure
from graphopt.proof.measure import Comparison, Cost
from graphopt.runtime.accumulators import Extent
from graphopt.runtime.cpu import Cpu
from graphopt.runtime.means import Mean
from graphopt.runtime.moments import Moments
from graphopt_passes.quantize import draft as drafts
from graphopt_passes.quantize import static

MODELS = Path(__file__).parents[2] / "models"
IMAGES = MODELS / "fashion_calibration.npz"
TEST = MODELS / "fashion_test.npz"

CLASSIFIER = "agraph (float[N,8] x) => (float[N,2] y) { a = Gemm(x, w)  r = Relu(a)  y = Gemm(r, v) }"
WIDE = """agraph (float[1,3,8,W] x) => (float[1,8,M] y)
{ a = Conv<pads = [1,1,1,1]>(x, w)  r = Relu(a)  p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r)
  c = Conv(p, v)  y = Squeeze(c, axis) }"""


def quantize(source: Any, output: Path | None = None, **options: Any) -> Result:
    defaults = {"precision": "int8", "measure": False, "threads": 1}
    return optimize(source, output, **(defaults | options))


def model(text: str, opset: int = 17, ir_version: int = 8, **weights: Any) -> onnx.ModelProto:
    found = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {text}')
    for name, array in weights.items():
        found.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    if ir_version < 4:
        found.graph.input.extend(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in found.graph.initializer
        )
    onnx.checker.check_model(found)
    return found


def floats(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def classifier() -> onnx.ModelProto:
    return model(CLASSIFIER, w=floats(8, 16), v=floats(16, 2))


@pytest.fixture
def fragile() -> onnx.ModelProto:
    """Its classes differ by far less than a step of any eight bits."""
    v = np.repeat(floats(16, 1), 2, axis=1)
    v[:, 1] += 1e-5 * floats(16, seed=1)
    return model(CLASSIFIER, w=floats(8, 16), v=v)


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.savez(tmp_path / "data.npz", x=floats(60, 8, seed=5))
    return str(tmp_path / "data.npz")


@pytest.fixture
def judged(tmp_path: Path) -> Callable[[onnx.ModelProto], str]:
    """Held-out samples, labelled by the float model itself."""

    def write(proto: onnx.ModelProto) -> str:
        x = floats(200, 8, seed=6)
        labels = run(proto, {"x": x})[0].argmax(axis=1)
        np.savez(tmp_path / "test.npz", x=x, labels=labels)
        return str(tmp_path / "test.npz")

    return write


def run(proto: onnx.ModelProto | bytes, feeds: Any) -> list[Any]:
    content = proto if isinstance(proto, bytes) else proto.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return list(ort.InferenceSession(content, options).run(None, feeds))


def bytes_of(result: Result, folder: Path) -> bytes:
    result.save(folder / "saved.onnx")
    return (folder / "saved.onnx").read_bytes()


def is_quantized(result: Result) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in result.model.ir.graph)


def notes(result: Result) -> str:
    return "\n".join(result.report.notes)


# The models of this repository.


@pytest.mark.parametrize("name", ["fashion_mlp", "fashion_cnn"])
def test_classifiers_keep_their_accuracy(name: str, tmp_path: Path) -> None:
    path = MODELS / f"{name}.onnx"
    output, judging = tmp_path / "out.onnx", tmp_path / "test.npz"
    test = {name: array[:500] for name, array in np.load(TEST).items()}
    np.savez(judging, **test)
    found = quantize(path, output, data=str(IMAGES), eval=str(judging), max_drop="1%", calibration_limit=60)
    outputs = [run(one.read_bytes(), {"input": test["input"]})[0] for one in (path, output)]
    before, after = (100 * (y.argmax(axis=1) == test["labels"]).mean() for y in outputs)
    report = found.report.accuracy
    assert report is not None
    assert report.achieved
    assert report.before.metric == pytest.approx(before, abs=0.21)  # one label of 500
    assert report.after.metric == pytest.approx(after, abs=0.21)
    assert before - after <= 0.01 * before
    assert report.calibration_samples == 60
    assert report.evaluation_samples == 500
    assert report.int8_macs == 1.0
    assert output.stat().st_size < 0.35 * path.stat().st_size
    layers = {layer.name: layer for layer in found.report.layers if layer.op in {"Conv", "Gemm"}}
    assert layers
    assert all(layer.precision == "int8" and layer.fused for layer in layers.values())
    assert "whether it pays is not known" in notes(found)


# The budget.


def test_a_missed_budget_leaves_the_floats(
    fragile: onnx.ModelProto, data: str, judged: Callable[[onnx.ModelProto], str], tmp_path: Path
) -> None:
    test = judged(fragile)
    output = tmp_path / "out.onnx"
    found = quantize(fragile, output, data=data, eval=test, max_drop="1%")
    assert not is_quantized(found)
    assert "no placement keeps the budget" in notes(found)
    accuracy = found.report.accuracy
    assert accuracy is not None
    assert not accuracy.achieved
    assert accuracy.after.metric is not None
    assert accuracy.after.metric < 99
    assert all(layer.precision == "float32" and layer.reason for layer in found.report.layers)
    feeds = {"x": floats(9, 8)}
    np.testing.assert_allclose(run(output.read_bytes(), feeds)[0], run(fragile, feeds)[0], rtol=1e-5)
    with pytest.raises(ParityError, match="no placement keeps the budget"):
        quantize(fragile, tmp_path / "strict.onnx", data=data, eval=test, max_drop="1%", strict=True)
    assert not (tmp_path / "strict.onnx").exists()


def test_a_wide_budget_takes_the_same_model(
    fragile: onnx.ModelProto, data: str, judged: Callable[[onnx.ModelProto], str]
) -> None:
    found = quantize(fragile, data=data, eval=judged(fragile), max_drop="100%", strict=True)
    assert is_quantized(found)


def test_only_the_guilty_layer_is_reverted(data: str, judged: Callable[[onnx.ModelProto], str]) -> None:
    """The last one reads channels a thousand times smaller than others, with weights as much larger."""
    sizes = np.float32([1.0] * 8 + [1e-3] * 8)
    text = CLASSIFIER.replace("y = Gemm(r, v)", "s = Gemm(r, u)  t = Tanh(s)  y = Gemm(t, v)")
    proto = model(text, w=floats(8, 16), u=0.1 * floats(16, 16) * sizes, v=floats(16, 2) / sizes[:, None])
    found = quantize(proto, data=data, eval=judged(proto), max_drop="10%")
    precisions = {layer.name: layer.precision for layer in found.report.layers}
    assert precisions["y"] == "float32"
    assert precisions["a"] == precisions["s"] == "int8"
    (reason,) = (layer.reason for layer in found.report.layers if layer.name == "y")
    assert "accuracy" in reason


# Whether it pays.


def comparison(ratio: float) -> Comparison:
    verdict: Any = "faster" if ratio > 1.02 else "slower" if ratio < 0.98 else "same"
    cost = Cost(1.0, 1.0, 1.0, 0.0)
    return Comparison(cost, replace(cost, median_ms=1 / ratio), ratio, 0.01, verdict, 99, "x 1x8", 1, "cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles and measurements are made, and take no time; nothing is concluded from them."""
    monkeypatch.setattr(drafts, "PROFILE_S", 0.02)
    monkeypatch.setitem(measure.compare.__kwdefaults__, "budget_s", 0.05)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("ratio", "kept"), [(1.5, True), (1.0, False), (0.5, False)])
def test_what_does_not_pay_is_not_kept(
    ratio: float, kept: bool, classifier: onnx.ModelProto, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Task, "compare", lambda *_: Trial((comparison(ratio),)))
    monkeypatch.setattr(Case, "compare", lambda *_: comparison(ratio))
    found = quantize(classifier, data=data, measure=True)
    assert is_quantized(found) is kept
    assert ("does not pay on this machine" in notes(found)) is not kept
    assert found.report.comparison is not None or not kept
    timed = [layer for layer in found.report.layers if layer.float_ms is not None]
    assert {layer.name for layer in timed} == {"a", "y"}


@pytest.mark.usefixtures("quick")
def test_the_last_word_has_the_measurement_against_the_original(
    classifier: onnx.ModelProto, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage found integers faster than the float result, but the whole is slower than the original."""
    monkeypatch.setattr(Task, "compare", lambda *_: Trial((comparison(1.5),)))
    monkeypatch.setattr(Case, "compare", lambda *_: comparison(0.9))
    found = quantize(classifier, data=data, measure=True)
    assert not is_quantized(found)
    assert "slower than the original" in notes(found)
    assert not found.report.accuracy.achieved
    assert {layer.precision for layer in found.report.layers} == {"float32"}


@pytest.mark.usefixtures("quick")
def test_slower_on_one_workload_is_slower(
    classifier: onnx.ModelProto, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial((comparison(3.0), comparison(0.9)))
    assert not trial.pays
    assert trial.ratio == pytest.approx(2.7**0.5)
    monkeypatch.setattr(Task, "compare", lambda *_: trial)
    assert not is_quantized(quantize(classifier, data=data, measure=True))


@pytest.mark.usefixtures("quick")
def test_what_real_measurements_choose_is_right(
    classifier: onnx.ModelProto, data: str, tmp_path: Path
) -> None:
    """Whatever they say on this machine, the result is near the floats, and the report says what it is."""
    found = quantize(classifier, data=data, measure=True)
    precisions = {layer.precision for layer in found.report.layers}
    assert ("int8 not achieved" in notes(found)) == (precisions == {"float32"})
    feeds = {"x": floats(20, 8, seed=7)}
    (exact,), (made,) = run(classifier, feeds), run(bytes_of(found, tmp_path), feeds)
    assert np.square(made - exact).sum() < 1e-2 * np.square(exact).sum()


@pytest.mark.usefixtures("quick")
def test_workloads_are_one_sample_and_a_batch(
    classifier: onnx.ModelProto, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[int, ...]]] = []

    def compare(task: Task, *_: Any) -> Trial:
        seen.append([tuple(workload["x"].numpy().shape) for workload in task.workloads])
        return Trial((comparison(1.5),))

    monkeypatch.setattr(Task, "compare", compare)
    quantize(classifier, data=data, measure=True)
    assert seen[0] == [(1, 8), (32, 8)]


# Calibration.


def test_calibration_is_saved_and_used_again(
    classifier: onnx.ModelProto, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "c.json"
    first = quantize(classifier, data=data, save_calibration=saved, ranges="minmax")
    before = bytes_of(first, tmp_path)
    gathered: list[tuple[Model, Request]] = []
    stream = Collector.stream

    def watched(self: Collector, model: Model, requests: Iterable[Request], samples: Any) -> Any:
        requests = list(requests)
        gathered.extend((model, request) for request in requests)
        return stream(self, model, requests, samples)

    monkeypatch.setattr(Collector, "stream", watched)
    again = quantize(classifier, data=data, calibration=saved, ranges="minmax")
    assert bytes_of(again, tmp_path) == before
    assert {type(request.kind) for _, request in gathered} == {Moments, Mean, Extent}
    [smoothed] = {id(model) for model, request in gathered if isinstance(request.kind, Extent)}
    assert smoothed != id(gathered[-1][0]), "what was seen of the float model was not kept"
    other = model(CLASSIFIER, w=floats(8, 16, seed=3), v=floats(16, 2))
    with pytest.raises(DataError, match="weights"):
        quantize(other, data=data, calibration=saved)
    np.savez(tmp_path / "other.npz", x=floats(60, 8, seed=9))
    with pytest.raises(DataError, match=r"data|samples"):
        quantize(classifier, data=str(tmp_path / "other.npz"), calibration=saved)


@pytest.mark.parametrize("ranges", ["percentile", "kl", "mse"])
def test_ranges_as_the_user_wants_them(ranges: str, classifier: onnx.ModelProto, data: str) -> None:
    found = quantize(classifier, data=data, ranges=ranges, max_drop="50%")
    assert is_quantized(found)
    assert {layer.method.split()[0] for layer in found.report.layers if layer.method} == {ranges}


MISFITS = {
    "another input": ({"z": floats(9, 8)}, "x"),
    "another shape": ({"x": floats(9, 7)}, "x"),
    "another rank": ({"x": floats(9, 8, 1)}, "x"),
    "another type": ({"x": np.array([["a"] * 8] * 9)}, "x"),
    "not a number": ({"x": np.full((9, 8), np.nan, np.float32)}, "x"),
}


@pytest.mark.parametrize(("arrays", "name"), MISFITS.values(), ids=MISFITS.keys())
def test_data_that_does_not_fit(
    arrays: dict[str, Any], name: str, classifier: onnx.ModelProto, tmp_path: Path
) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(DataError, match=f"'{name}'"):
        quantize(classifier, data=str(tmp_path / "wrong.npz"))


def test_samples_that_judge_must_not_calibrate(
    classifier: onnx.ModelProto, data: str, tmp_path: Path
) -> None:
    x = np.load(data)["x"]
    np.savez(tmp_path / "test.npz", x=np.concatenate([floats(5, 8, seed=8), x[7:8]]), labels=np.zeros(6, int))
    with pytest.raises(DataError, match=r"1 of 6 samples.*must not judge"):
        quantize(classifier, data=data, eval=str(tmp_path / "test.npz"))


def test_samples_of_any_width(tmp_path: Path) -> None:
    weights = {"w": floats(8, 3, 3, 3), "v": floats(8, 8, 4, 1, seed=1), "axis": np.array([2])}
    proto = model(WIDE, **weights)
    for number, width in enumerate([8, 14, 30, 8, 22, 9, 16, 40]):
        np.savez(tmp_path / f"{number}.npz", x=floats(1, 3, 8, width, seed=number))
    found = quantize(proto, data=str(tmp_path))
    assert {layer.name: layer.precision for layer in found.report.layers}["c"] == "int8"
    feeds = {"x": floats(1, 3, 8, 50, seed=99)}
    (exact,), (after,) = run(proto, feeds), run(bytes_of(found, tmp_path), feeds)
    assert np.square(after - exact).sum() < 1e-2 * np.square(exact).sum()


def test_synthetic_samples_are_said_to_be_so(classifier: onnx.ModelProto) -> None:
    found = quantize(classifier, data="synthetic")
    assert found.report.accuracy is not None
    assert found.report.accuracy.synthetic


# Models of all ages.


def test_a_model_without_layers(data: str) -> None:
    proto = model("agraph (float[N,8] x) => (float[N,8] y) { a = Tanh(x)  y = Mul(a, x) }")
    found = quantize(proto, data=data)
    assert not is_quantized(found)
    assert "no layer with an integer kernel" in notes(found)
    assert found.report.accuracy is None


def test_a_quantized_model_stays_what_it_is(classifier: onnx.ModelProto, data: str, tmp_path: Path) -> None:
    once = bytes_of(quantize(classifier, data=data), tmp_path)
    twice = quantize(onnx.load_from_string(once), data=data)
    assert "int8 not achieved" in notes(twice)
    feeds = {"x": floats(20, 8, seed=7)}
    np.testing.assert_array_equal(run(bytes_of(twice, tmp_path), feeds)[0], run(once, feeds)[0])


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 3), (11, 6), (17, 3), (21, 10)])
def test_models_of_all_ages(opset: int, ir_version: int, data: str, tmp_path: Path) -> None:
    text = CLASSIFIER.replace("Gemm(x, w)", "Gemm(x, w, b)").replace("Gemm(r, v)", "Gemm(r, v, c)")
    weights = {"w": floats(8, 16), "v": floats(16, 2), "b": floats(16), "c": floats(2)}
    proto = model(text, opset, ir_version, **weights)
    found = quantize(proto, data=data, max_drop="5%")
    assert is_quantized(found)
    after = bytes_of(found, tmp_path)
    onnx.checker.check_model(onnx.load_from_string(after), full_check=True)
    feeds = {"x": floats(50, 8, seed=7)}
    (exact,), (made,) = run(proto, feeds), run(after, feeds)
    assert 0 < np.square(made - exact).sum() < 1e-2 * np.square(exact).sum()


def test_cpus_that_saturate_get_seven_bits(
    classifier: onnx.ModelProto, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "cpu", lambda: Cpu("x86_64", None, True))
    found = quantize(classifier, data=data, max_drop="50%")
    assert "7 bits" in notes(found)
    integers = [
        value.const_value.numpy()
        for value in found.model.ir.graph.initializers.values()
        if value.const_value is not None and value.name.endswith("_quantized") and len(value.shape) == 2
    ]
    assert len(integers) == 2
    assert max(np.abs(array.astype(int)).max() for array in integers) == 63
