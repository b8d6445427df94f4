"""Measurement: what the numbers say when the truth is known; no test depends on how fast the machine is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.proof.measure import Comparison, Cost, compare, describe, judge
from graphopt.runtime.values import Tensor
from graphopt.runtime.worker import Worker
from graphopt.target import CPU


def _times(factor, rounds=200, seed=0):
    """Seconds of two models on a machine whose speed wanders by half and that stalls now and then."""
    rng = np.random.default_rng(seed)
    speed = 1 + 0.5 * np.sin(np.arange(rounds) / 9)
    stalls = 1 + 20 * (rng.random((2, rounds)) < 0.03)
    jitter = rng.lognormal(0, 0.1, (2, rounds))
    return 1e-3 * speed * jitter[0] * stalls[0], 1e-3 / factor * speed * jitter[1] * stalls[1]


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_difference(seed):
    ratio, noise, verdict = judge(*_times(1.0, seed=seed))
    assert verdict == "same"
    assert abs(ratio - 1) < 0.1
    assert noise > 0


@pytest.mark.parametrize(("factor", "verdict"), [(1.3, "faster"), (0.8, "slower"), (1.01, "same")])
def test_a_difference_beyond_noise_is_seen(factor, verdict):
    ratio, noise, found = judge(*_times(factor))
    assert found == verdict
    assert abs(ratio - factor) < 3 * noise


def test_few_rounds_decide_nothing():
    assert judge([2.0] * 7, [1.0] * 7)[2] == "same"
    assert judge([2.0] * 8, [1.0] * 8)[2] == "faster"


def test_one_unlucky_session_decides_nothing():
    """Neighbouring rounds share what disturbs them: half of the rounds, however many, are one observation."""
    before = [1.06] * 500 + [0.99] * 500
    assert judge(before, [1.0] * 1000)[2] == "same"


def _matmuls(path, count, size=96):
    """A chain of ``count`` products, the work growing with it."""
    weight = numpy_helper.from_array(np.eye(size, dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(count)]
    ports = [helper.make_tensor_value_info(name, 1, [size, size]) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


SAMPLE = {"x0": Tensor.of(np.ones((96, 96), np.float32))}


def test_a_model_of_twenty_times_the_work_is_slower(tmp_path):
    small, large = _matmuls(tmp_path / "a.onnx", 2), _matmuls(tmp_path / "b.onnx", 40)
    with Worker() as worker:
        found = compare(small, large, SAMPLE, worker=worker, threads=1, budget_s=0.5)
    assert found.verdict == "slower"
    assert found.rounds >= 8
    assert found.before.low_ms <= found.before_ms <= found.before.high_ms
    assert found.after.load_s > 0


def test_peak_memory_counts_the_weights(tmp_path):
    model = _matmuls(tmp_path / "a.onnx", 1, size=2000)
    feeds = {"x0": Tensor.of(np.ones((2000, 2000), np.float32))}
    with Worker() as worker:
        found = compare(model, model, feeds, worker=worker, threads=1, budget_s=0, memory=True)
    assert min(found.before.peak_bytes, found.after.peak_bytes) > 3 * 2000 * 2000 * 4


def test_the_summary_says_ratio_noise_and_workload():
    cost = Cost.of([0.001, 0.002, 0.003], 0.5)
    found = Comparison(cost, cost, 1.0, 0.05, "same", 3, describe(SAMPLE), 2, "cpu")
    told = "2 ms → 2 ms, 1.00x paired ± 0.05 (no difference beyond noise)"
    assert found.summary() == f"{told} at x0 96x96, 2 threads, cpu"


def test_samples_are_described_by_their_shapes():
    sample = {"s": [], "t": Tensor.of(np.float32(1)), "o": None}
    assert describe(sample) == "s of 0, t scalar, o empty"


def test_a_verdict_of_a_busy_machine_says_so() -> None:
    cost = Cost(2.0, 1.9, 2.1, 0.01)
    found = [Comparison(cost, cost, 1.4, noise, "faster", 30, "x", 1, "cpu").words for noise in (0.1, 1.3)]
    assert found == ["faster", "faster; noisy, the machine may be busy"]


Run = Callable[..., object]


def test_runs_are_timed_as_users_make_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From numpy to numpy: OrtValues take longer, and are only for types that numpy lacks."""
    import onnxruntime as ort

    from graphopt.runtime.sessions import Runtime

    calls: list[str] = []
    for name in ("run", "run_with_ort_values"):
        original = getattr(ort.InferenceSession, name)

        def call(self: object, *given: object, name: str = name, original: Run = original) -> object:
            calls.append(name)
            return original(self, *given)

        monkeypatch.setattr(ort.InferenceSession, name, call)
    for kind, expected in (
        (onnx.TensorProto.FLOAT, "run"),
        (onnx.TensorProto.BFLOAT16, "run_with_ort_values"),
    ):
        ports = [helper.make_tensor_value_info(name, kind, [2]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ports[:1], ports[1:])
        proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        runtime = Runtime(tmp_path, ())
        runtime.open(0, proto.SerializeToString(), CPU, 1)
        raw = np.zeros(2, np.float32 if kind == onnx.TensorProto.FLOAT else np.uint16).view(np.uint8)
        calls.clear()
        runtime.time([0], {"x": Tensor(kind, (2,), raw)}, 4, 0.1)
        assert set(calls) == {expected}
