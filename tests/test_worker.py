"""The worker: sessions in a child process that may die, hang or run out of memory."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.errors import MissingRuntimeError, SystemRefusedError, UsageError, WorkerError
from graphopt.runtime.values import FileRange, Tensor, keep
from graphopt.runtime.worker import Worker
from graphopt.target import REFERENCE, Target


def _model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def _info(name, elem_type, shape):
    return helper.make_tensor_value_info(name, elem_type, shape)


def _identity(elem_type, shape):
    """No node at all: few kernels take 4-bit types."""
    return _model([], [_info("x", elem_type, shape)], [_info("x", elem_type, shape)])


def _doubling(shape=("n",)):
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return _model([node], [_info("x", 1, shape)], [_info("y", 1, shape)])


def _endless():
    """A Loop that counts to 2**40: no answer within a test's time."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c_out"]), helper.make_node("Add", ["v", "one"], ["v_out"])],
        "body",
        [_info("i", 7, []), _info("c", 9, []), _info("v", 7, [])],
        [_info("c_out", 9, []), _info("v_out", 7, [])],
        [helper.make_tensor("one", 7, [], [1])],
    )
    node = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)
    trips = helper.make_tensor("trips", 7, [], [2**40])
    return _model([node], [_info("x", 7, [])], [_info("y", 7, [])], [trips])


@pytest.fixture(scope="module")
def worker():
    with Worker(time_limit=60) as one:
        yield one


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "float16",
        "int64",
        "uint8",
        "bool",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "uint4",
        "int4",
    ],
)
@pytest.mark.parametrize("shape", [(3,), (0, 2), ()])
def test_tensors_of_every_type_come_back_bit_for_bit(worker, dtype, shape):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    tensor = Tensor.of(array)
    result = worker.evaluate(_identity(tensor.elem_type, list(shape)), {"x": tensor})["x"]
    assert result.elem_type == tensor.elem_type
    assert result.shape == shape
    np.testing.assert_array_equal(result.raw(), tensor.raw())
    np.testing.assert_array_equal(result.numpy(), array)


def test_strings_come_back(worker):
    array = np.array([["a", "é"], ["", "日本"]], dtype=object)
    result = worker.evaluate(_identity(TensorProto.STRING, [2, 2]), {"x": Tensor.of(array)})["x"]
    np.testing.assert_array_equal(result.numpy(), array)


def test_packed_elements_agree_with_onnx():
    values = np.array([1, -2, 7, -8, 3], dtype=ml_dtypes.int4)
    assert bytes(Tensor.of(values).raw()) == onnx.numpy_helper.from_array(values).raw_data
    np.testing.assert_array_equal(Tensor.of(values).numpy().astype(int), values.astype(int))


def test_sequences_and_empty_optionals_pass(worker):
    sequence = helper.make_tensor_sequence_value_info("s", 1, None)
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [2]))
    nodes = [
        helper.make_node("SequenceInsert", ["s", "t"], ["s2"]),
        helper.make_node("OptionalHasElement", ["o"], ["has"]),
    ]
    inputs = [sequence, _info("t", 1, None), helper.make_value_info("o", optional)]
    outputs = [helper.make_tensor_sequence_value_info("s2", 1, None), _info("has", 9, [])]
    feeds = {"s": [Tensor.of(np.zeros(1, np.float32))], "t": Tensor.of(np.ones(3, np.float32)), "o": None}
    result = worker.evaluate(_model(nodes, inputs, outputs), feeds)
    assert [item.numpy().tolist() for item in result["s2"]] == [[0.0], [1.0, 1.0, 1.0]]
    assert not result["has"].numpy()


def test_weights_are_fed_from_a_file_at_any_offset(worker, tmp_path):
    values = np.arange(5, dtype=np.float32)
    (tmp_path / "weights").write_bytes(b"odd" + values.tobytes())
    feed = Tensor(1, (5,), FileRange(str(tmp_path / "weights"), 3, 20))
    np.testing.assert_array_equal(worker.evaluate(_doubling(), {"x": feed})["y"].numpy(), values * 2)


def test_large_results_come_back_as_a_file_that_keep_removes(worker):
    values = np.arange(100_000, dtype=np.float32)
    result = worker.evaluate(_doubling(), {"x": Tensor.of(values)})
    path = Path(result["y"].data.path)
    assert path.stat().st_size == values.nbytes
    kept = keep(result)
    assert not path.exists()
    np.testing.assert_array_equal(kept["y"].numpy(), values * 2)


def test_a_failing_model_leaves_the_worker_usable(worker):
    with pytest.raises(WorkerError) as error:
        worker.evaluate(b"not a model", {})
    assert error.value.reason == "failed"
    assert "\n" not in str(error.value)
    assert worker.evaluate(_doubling(), {"x": Tensor.of(np.ones(1, np.float32))})["y"].numpy() == [2]


def test_a_session_says_its_interface_and_is_made_again_after_the_child_died(tmp_path):
    (tmp_path / "m.onnx").write_bytes(_doubling())
    with Worker() as worker:
        session = worker.open(tmp_path / "m.onnx", Target.named("cpu"), threads=1)
        assert [(value.name, value.type, value.shape) for value in session.info.inputs] == [
            ("x", "tensor(float)", ("n",))
        ]
        assert session.info.seconds > 0
        os.kill(worker._child.pid, signal.SIGKILL)
        feeds = {"x": Tensor.of(np.ones(2, np.float32))}
        with pytest.raises(WorkerError) as error:
            worker.run(session, feeds)
        assert error.value.reason == "died"
        np.testing.assert_array_equal(worker.run(session, feeds)["y"].numpy(), [2, 2])
        worker.close(session)
        assert worker.peak_memory() > 10**6
        assert "CPUExecutionProvider" in worker.providers()


def test_a_call_over_time_is_cut_off():
    with Worker(time_limit=3) as worker:
        worker.providers()
        with pytest.raises(WorkerError) as error:
            worker.evaluate(_endless(), {"x": Tensor.of(np.array(0))})
        assert error.value.reason == "timeout"


def test_a_tensor_over_the_memory_limit_is_reported_as_memory():
    fill = helper.make_node("ConstantOfShape", ["x"], ["y"])
    model = _model([fill], [_info("x", 7, [1])], [_info("y", 1, None)])
    with Worker(memory_limit=10**9) as worker, pytest.raises(WorkerError) as error:
        worker.evaluate(model, {"x": Tensor.of(np.array([2**32]))})
    assert error.value.reason == "memory"
    assert "it may take 1 GB, --memory-limit allows more" in str(error.value)


def test_a_library_that_is_none_is_the_callers_mistake(tmp_path):
    (tmp_path / "ops.so").write_bytes(b"no library")
    with Worker(custom_ops=[tmp_path / "ops.so"]) as worker, pytest.raises(UsageError, match=r"ops\.so"):
        worker.open(_doubling())


def test_results_that_cannot_be_spilled_are_the_systems_refusal():
    with Worker() as worker, pytest.raises(SystemRefusedError, match="cannot be written"):
        shutil.rmtree(worker.folder)
        worker.evaluate(_doubling(), {"x": Tensor.of(np.ones(100_000, np.float32))})


def test_an_interrupt_is_the_parents_to_handle(worker):
    worker.providers()
    child = worker._child
    child.send_signal(signal.SIGINT)
    assert os.getpgid(child.pid) != os.getpgid(0)
    assert worker.providers()
    assert worker._child is child


def test_interleaved_timings_pair_up(worker):
    sessions = [worker.open(_doubling(), REFERENCE, threads=1) for _ in range(2)]
    first, second = worker.time(sessions, {"x": Tensor.of(np.ones(9, np.float32))}, rounds=4)
    assert len(first) == len(second) == 4
    assert min(first + second) > 0


def test_a_missing_runtime_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no onnxruntime')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with Worker() as worker, pytest.raises(MissingRuntimeError, match=r"install graphopt\[cpu\]"):
        worker.providers()


def test_a_target_that_cannot_be_had_is_refused(worker):
    with pytest.raises(UsageError, match="choose one of cpu, cuda, tensorrt"):
        Target.named("tpu")
    nowhere = Target("nowhere", ("NowhereExecutionProvider", "CPUExecutionProvider"))
    with pytest.raises(UsageError, match="needs NowhereExecutionProvider"):
        worker.open(_doubling(), nowhere)


def test_nothing_of_the_worker_is_left_when_it_ends():
    worker = Worker()
    worker.evaluate(_doubling(), {"x": Tensor.of(np.ones(100_000, np.float32))})
    child, spill = worker._child, worker.folder
    worker.shutdown()
    assert child.returncode is not None
    assert not spill.exists()


def test_the_child_ends_with_its_parent_even_in_a_run(tmp_path):
    script = (
        "import sys, threading, time; import numpy as np\n"
        "from graphopt.runtime.worker import Worker; from graphopt.runtime.values import Tensor\n"
        "w = Worker(); w.providers(); print(w._child.pid, w.folder, flush=True)\n"
        "w.evaluate(open(sys.argv[1], 'rb').read(), {'x': Tensor.of(np.array(0))})\n"
    )
    (tmp_path / "endless.onnx").write_bytes(_endless())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path / "endless.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        child, folder = parent.stdout.readline().decode().split()
        assert Path(folder).is_dir()
        parent.kill()
    assert _ends(int(child))
    assert not Path(folder).exists()


def _ends(pid, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False
