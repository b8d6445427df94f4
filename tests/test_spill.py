"""Weights that passes make: kept in a file without a name, mapped when read, bounded in memory."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser

from graphopt.errors import SystemRefusedError
from graphopt.model import Model
from graphopt.pipeline import Pipeline, Run
from graphopt.runtime.worker import Worker
from graphopt.storage.spill import Spill
from graphopt.storage.weights import MappedFile, MappedTensor, slices
from graphopt.target import CPU
from graphopt_passes.exact.fold_constants import FoldConstants
from graphopt_passes.fuse.conv_affine import FuseConvAffine
from graphopt_passes.fuse.conv_bn import FuseConvBn
from tests.support import assert_same, parse, run_passes

RNG = np.random.default_rng(0)
LIMIT = 1 << 16  # bytes from which on a constant is spilled


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(time_limit=60) as one:
        yield one


def spilled(shape: tuple[int, ...] = (128, 256)) -> tuple[np.ndarray, MappedTensor]:
    array = RNG.standard_normal(shape, dtype=np.float32)
    kept = Spill().keep(ir.Tensor(array, name="w"))
    assert isinstance(kept, MappedTensor)
    return array, kept


def build(text: str, **arrays: np.ndarray) -> onnx.ModelProto:
    """The graph of a text, with these initializers."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


TRANSPOSED = "g (float[2, 256] x) => (float[2, 128] y) { t = Transpose(w)  y = MatMul(x, t) }"


# What is kept, and how it comes back.


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float16", "int64", "bool", "complex128", "bfloat16", "float8_e4m3fn", "int4", "uint2"],
)
def test_large_tensors_come_back_bit_for_bit(dtype: str) -> None:
    numbers = np.arange(5 * LIMIT).reshape(5, -1) % 7
    array = numbers.astype(getattr(ml_dtypes, dtype, dtype))
    tensor = ir.Tensor(array, name="w", doc_string="said", metadata_props={"key": "value"})
    kept = Spill().keep(tensor)
    assert isinstance(kept, MappedTensor)
    assert (kept.dtype, kept.shape, kept.name) == (tensor.dtype, tensor.shape, "w")
    assert (kept.doc_string, kept.metadata_props) == ("said", {"key": "value"})
    assert kept.tobytes() == b"".join(kept.chunks()) == tensor.tobytes()
    np.testing.assert_array_equal(kept.numpy(), array)


def test_layouts_of_arrays_do_not_matter() -> None:
    array = RNG.standard_normal((200, 300))
    for same in (np.asfortranarray(array), np.repeat(array, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(Spill().keep(ir.Tensor(same)).numpy(), array)


def test_small_tensors_strings_and_mapped_ones_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(LIMIT))
    shape = ir.Shape([LIMIT])
    for tensor in (
        ir.Tensor(np.zeros(LIMIT - 1, np.uint8)),
        ir.StringTensor([b"long" * LIMIT], shape=ir.Shape([1])),
        MappedTensor(MappedFile(tmp_path / "weights"), 0, ir.DataType.UINT8, shape),
    ):
        assert Spill().keep(tensor) is tensor


def test_tensors_of_one_spill_share_a_file_and_outlive_it() -> None:
    spill = Spill()
    arrays = [RNG.integers(0, 255, LIMIT + extra, np.uint8) for extra in (1, 5000, 0, 3)]
    kept = [spill.keep(ir.Tensor(array)) for array in arrays]
    assert len({id(tensor.file) for tensor in kept if isinstance(tensor, MappedTensor)}) == 1
    views = [tensor.numpy() for tensor in kept]
    del kept[1]
    spill.keep(ir.Tensor(arrays[0]))
    del spill, kept
    for view, array in zip(views, arrays, strict=True):
        np.testing.assert_array_equal(view, array)


def test_views_are_read_only() -> None:
    _, kept = spilled()
    with pytest.raises(ValueError, match="read-only"):
        kept.numpy()[0] = 1


@pytest.mark.parametrize("elements", [1, 1000, 1 << 30])
def test_slices_cover_a_tensor_once(elements: int) -> None:
    array, kept = spilled((100, 300))
    for tensor in (kept, ir.Tensor(array)):
        found = list(slices(tensor, elements))
        np.testing.assert_array_equal(np.concatenate([part for _, part in found]), array)
        assert all((array[where] == part).all() for where, part in found)
        assert all(part.size <= max(elements, 300) for _, part in found)


# The file.


def test_the_file_has_no_name_and_goes_with_its_last_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, kept = spilled()
    assert isinstance(kept.file, MappedFile)
    descriptor = kept.file.fileno()
    assert descriptor is not None and os.fstat(descriptor).st_size == kept.length
    assert list(tmp_path.iterdir()) == []
    del kept
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, numpy as np, onnx_ir as ir; from graphopt.storage.spill import Spill;"
        "kept = Spill().keep(ir.Tensor(np.ones(1 << 20))); kept.numpy().sum(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_many_tensors_take_few_descriptors(worker: Worker) -> None:
    """Made by rules, or by constant folding."""
    made = [f"t{i}" for i in range(300)]
    nodes = " ".join(f"{name} = Mul(w, f{i})" for i, name in enumerate(made))
    text = f"g (float[128, 130] x) => (float[128, 130] y) {{ {nodes} y = Sum(x, {', '.join(made)}) }}"
    factors = {f"f{i}": np.array(i, np.float32) for i in range(300)}
    proto = build(text, w=RNG.standard_normal((128, 130), dtype=np.float32), **factors)
    before = len(os.listdir("/dev/fd"))
    model, _ = run_passes(proto, FoldConstants(max_growth=1 << 30), worker=worker)
    tensors = [model.ir.graph.initializers[name].const_value for name in made]
    assert all(isinstance(tensor, MappedTensor) for tensor in tensors)
    assert len(os.listdir("/dev/fd")) - before < 20


def test_a_full_disk_is_one_clear_error() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensor = ir.Tensor(np.zeros(4 * LIMIT, np.uint8))
    spill = Spill()
    spill.keep(tensor)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 * LIMIT, limits[1]))
    try:
        with pytest.raises(SystemRefusedError, match=r"new weights .*File too large"):
            spill.keep(tensor)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not spill.keep(tensor).numpy().any()  # what was half written is not in the way


def test_a_full_disk_ends_optimize_with_exit_code_1(tmp_path: Path) -> None:
    conv_bn(2, 256, tmp_path / "in.onnx")
    command = [sys.executable, "-m", "graphopt", "optimize", "in.onnx", "out.onnx", "--no-verify"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert done.returncode == 1
    assert "cannot write new weights to" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


# Passes, the worker, saving.


@pytest.mark.parametrize("external", [False, True])
def test_fused_weights_are_saved_from_the_spill(tmp_path: Path, external: bool) -> None:
    conv_bn(2, 160, tmp_path / "in.onnx")
    model, run = Model.load(tmp_path / "in.onnx"), Run(CPU, None)  # type: ignore[arg-type]
    Pipeline([FuseConvBn()])(model, run)
    assert run.journal.counts()["conv-batch-norm"] == 2
    used = [value.const_value for value in model.ir.graph.initializers.values() if value.uses()]
    fused = [tensor for tensor in used if tensor is not None and tensor.nbytes >= LIMIT]
    assert len(fused) == 2 and all(isinstance(tensor, MappedTensor) for tensor in fused)
    model.save(tmp_path / "out.onnx", external_data=external)
    before, after = onnx.load(tmp_path / "in.onnx"), Model.load(tmp_path / "out.onnx")
    assert [node.op_type for node in after.ir.graph] == ["Conv", "Conv"]
    feed = RNG.standard_normal((1, 160, 3, 3), dtype=np.float32)
    assert_same(before, after, {"x": feed}, rtol=2e-3)
    held = {v.const_value.tobytes() for v in after.ir.graph.initializers.values() if v.const_value}
    assert {tensor.tobytes() for tensor in fused} <= held


def test_constant_nodes_of_functions_are_spilled(worker: Worker) -> None:
    factor = float(RNG.standard_normal())
    elements = ", ".join(["0.5"] * 30_000)
    function = (
        '<domain: "local", opset_import: ["" : 17]> scaled (x) => (y)'
        f" {{ w = Constant <value = float[300, 100] {{{elements}}}> ()"
        f" k = Constant <value = float {{{factor}}}> ()  p = MatMul(x, w)  y = Mul(p, k) }}"
    )
    proto = parse("g (float[2, 300] x) => (float[2, 100] y) { y = local.scaled(x) }", functions=function)
    model, _ = run_passes(proto, FuseConvAffine(), worker=worker)
    (body,) = model.ir.functions.values()
    matmul = next(node for node in body.graph if node.op_type == "MatMul")
    producer = matmul.inputs[1].producer() if matmul.inputs[1] is not None else None
    assert producer is not None and isinstance(producer.attributes["value"].value, MappedTensor)
    assert_same(proto, model, {"x": RNG.standard_normal((2, 300), dtype=np.float32)}, rtol=2e-3)


@pytest.mark.parametrize("path_known", [True, False])
def test_the_worker_reads_spilled_tensors(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, path_known: bool
) -> None:
    if not path_known:
        monkeypatch.setattr(MappedFile, "shared_path", lambda self: None)
    array, kept = spilled()
    model = Model.of(build(TRANSPOSED, w=np.zeros((128, 256), np.float32)))
    model.ir.graph.initializers["w"].const_value = kept
    Pipeline([FoldConstants()])(model, Run(CPU, worker))
    found = model.ir.graph.initializers["t"].const_value
    assert isinstance(found, MappedTensor)
    np.testing.assert_array_equal(found.numpy(), array.T)


def test_results_of_a_worker_that_is_gone_feed_the_next(worker: Worker) -> None:
    """Its folder is removed with it, but not what is open."""
    array = RNG.standard_normal((128, 256), dtype=np.float32)
    with Worker() as first:
        model, _ = run_passes(build(TRANSPOSED, w=array), FoldConstants(), worker=first)
    value = model.ir.graph.initializers["t"]
    negated = ir.node("Neg", [value])
    negated.outputs[0].name = "n"
    model.ir.graph.insert_before(model.ir.graph[0], negated)
    model.ir.graph[1].replace_input_with(1, negated.outputs[0])
    Pipeline([FoldConstants()])(model, Run(CPU, worker))
    found = model.ir.graph.initializers["n"].const_value
    assert isinstance(found, MappedTensor)
    np.testing.assert_array_equal(found.numpy(), -array.T)


def test_a_shortened_file_is_an_error_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(4 * LIMIT))
    file = MappedFile(tmp_path / "weights")
    tensor = MappedTensor(file, 2 * LIMIT, ir.DataType.UINT8, ir.Shape([2 * LIMIT]))
    os.truncate(tmp_path / "weights", LIMIT)
    with pytest.raises(SystemRefusedError, match="shortened"):
        tensor.numpy()


# Memory.


def conv_bn(count: int, channels: int, path: Path) -> None:
    """``count`` times Conv and BatchNormalization, the weights [channels, channels, 1, 1] of float32."""
    nodes, arrays, before = [], {}, "x"
    for i in range(count):
        nodes.append(helper.make_node("Conv", [before, f"w{i}"], [f"c{i}"]))
        names = [f"{kind}{i}" for kind in ("scale", "bias", "mean", "variance")]
        before = "y" if i == count - 1 else f"n{i}"
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *names], [before]))
        arrays[f"w{i}"] = RNG.standard_normal((channels, channels, 1, 1), dtype=np.float32) / channels
        arrays |= {name: RNG.uniform(0.5, 2, channels).astype(np.float32) for name in names}
    infos = [helper.make_tensor_value_info(name, 1, [1, channels, 3, 3]) for name in ("x", "y")]
    save(helper.make_graph(nodes, "g", infos[:1], infos[1:]), arrays, path)


def scaled_product(rows: int, columns: int, path: Path) -> None:
    """(x·W)·k with a weight [rows, columns] of float32 and one k per column."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Mul", ["p", "k"], ["y"])]
    infos = [helper.make_tensor_value_info(*info) for info in (("x", 1, [1, rows]), ("y", 1, [1, columns]))]
    arrays = {"w": RNG.standard_normal((rows, columns), np.float32), "k": RNG.random(columns, np.float32)}
    save(helper.make_graph(nodes, "g", infos[:1], infos[1:]), arrays, path)


def save(graph: onnx.GraphProto, arrays: dict[str, np.ndarray], path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, path)


PEAK = """
import sys
from graphopt.model import Model
from graphopt.pipeline import Pipeline, Run
from graphopt.target import CPU
from graphopt_passes.fuse.conv_affine import FuseConvAffine
from graphopt_passes.fuse.conv_bn import FuseConvBn

def peak():
    status = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

model, run = Model.load(sys.argv[1]), Run(CPU, None)
before = peak()
Pipeline([FuseConvBn(), FuseConvAffine()])(model, run)
model.save(sys.argv[2])
print(len(run.journal.rewrites), peak() - before)
"""


def memory_to_fuse(folder: Path) -> tuple[int, int]:
    """Rewrites made, and the bytes by which the peak of resident memory grows with them and saving."""
    command = [sys.executable, "-c", PEAK, "in.onnx", "out.onnx"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    rewrites, grown = map(int, done.stdout.split())
    return rewrites, grown


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_memory_is_bounded_by_a_weight_not_by_their_sum(tmp_path: Path) -> None:
    conv_bn(24, 1024, tmp_path / "in.onnx")
    rewrites, grown = memory_to_fuse(tmp_path)
    assert rewrites == 24
    assert grown < 48 << 20 < (tmp_path / "out.onnx").stat().st_size / 2 + 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_memory_is_that_of_one_weight_and_a_block(tmp_path: Path) -> None:
    scaled_product(4096, 6144, tmp_path / "in.onnx")
    rewrites, grown = memory_to_fuse(tmp_path)
    assert rewrites == 1
    assert grown < 1.5 * 4 * 4096 * 6144
