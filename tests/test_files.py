"""Bad input is one clear line, and output appears whole or not at all; the input is never touched."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt.errors import (
    GraphoptError,
    InvalidModelError,
    SystemRefusedError,
    UnsupportedModelError,
    UsageError,
)
from graphopt.model import Model
from graphopt.storage.files import Staged, write_text

ROWS, COLS = 300, 40


def linear(rows: int = ROWS) -> onnx.ModelProto:
    """y = x w + b, with 48,000 bytes of weights."""
    weight = np.random.default_rng(0).standard_normal((rows, COLS), dtype=np.float32)
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, {rows}] x) => (float[N, {COLS}] y)'
        " { m = MatMul(x, w)  y = Add(m, b) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.initializer.append(numpy_helper.from_array(weight[0], "b"))
    return model


def external(folder: Path, **entries: str | int) -> Path:
    """The same with ``w`` in w.bin, its external_data entries changed as told."""
    model = linear()
    weight = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(bytes(512) + weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    place = {"location": "w.bin", "offset": 512, "length": ROWS * COLS * 4} | entries
    for key, value in place.items():
        weight.external_data.add(key=key, value=str(value))
    path = folder / "in.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def edited(edit: Callable[[onnx.ModelProto], object]) -> bytes:
    model = linear()
    edit(model)
    return model.SerializeToString()


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def self_cycle_through_a_subgraph(model: onnx.ModelProto) -> None:
    body = parser.parse_graph("g () => (float r) { r = Neg(out) }")
    node = model.graph.node.add(op_type="If", input=["x"], output=["out"])
    node.attribute.extend(
        [helper.make_attribute("then_branch", body), helper.make_attribute("else_branch", body)]
    )


def undefined_in_a_subgraph(model: onnx.ModelProto) -> None:
    then = parser.parse_graph("t () => (float r) { only_here = Neg(x)  r = Abs(only_here) }")
    other = parser.parse_graph("e () => (float r) { r = Abs(only_here) }")
    node = model.graph.node.add(op_type="If", input=["x"], output=["out"])
    node.attribute.extend(
        [helper.make_attribute("then_branch", then), helper.make_attribute("else_branch", other)]
    )


def output_from_outside(model: onnx.ModelProto) -> None:
    body = onnx.GraphProto(output=[helper.make_tensor_value_info("x", TensorProto.FLOAT, None)])
    model.graph.node.add(op_type="If", input=["x"], output=["z"]).attribute.append(
        helper.make_attribute("then_branch", body)
    )


def undefined_in_a_function(model: onnx.ModelProto) -> None:
    function = parser.parse_function('<domain: "d", opset_import: ["" : 17]> f (a) => (b) { b = Add(a, w) }')
    model.functions.append(function)


def cycle_in_a_function(model: onnx.ModelProto) -> None:
    text = '<domain: "d", opset_import: ["" : 17]> f (a) => (b) { b = Add(a, c)  c = Neg(b) }'
    model.functions.append(parser.parse_function(text))


def recursive_function(model: onnx.ModelProto) -> None:
    for name, callee in ("f", "g"), ("g", "f"):
        text = f'<domain: "d", opset_import: ["" : 17, "d" : 1]> {name} (a) => (b) {{ b = d.{callee}(a) }}'
        model.functions.append(parser.parse_function(text))


def terabytes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]


def terabytes_without_data(model: onnx.ModelProto) -> None:
    terabytes(model)
    model.graph.initializer[0].ClearField("raw_data")


def overflow(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 62, 1 << 62]


INVALID: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "states no IR version"),
    "random": (np.random.default_rng(0).bytes(10_000), "not an ONNX model"),
    "text": (b"graph { node }" * 1000, "not an ONNX model"),
    "truncated weights": (linear().SerializeToString()[:20_000], "truncated"),
    "truncated end": (linear().SerializeToString()[:-1], "truncated"),
    "no opset": (edited(lambda m: m.ClearField("opset_import")), "imports no opset"),
    "opset 0": (edited(lambda m: setattr(m.opset_import[0], "version", 0)), "opset 0 does not exist"),
    "no graph": (edited(lambda m: m.ClearField("graph")), "no graph"),
    "cycle": (edited(cycle), "the graph has a cycle: value 'y'"),
    "cycle through a subgraph": (edited(self_cycle_through_a_subgraph), "cycle: value 'out'"),
    "cycle in a function": (edited(cycle_in_a_function), "function 'f' has a cycle: value 'c'"),
    "recursive function": (edited(recursive_function), "function 'f' calls itself"),
    "undefined": (edited(lambda m: m.graph.initializer.pop()), r"node 'y' \(Add\) reads 'b'"),
    "undefined in a subgraph": (
        edited(undefined_in_a_subgraph),
        "reads 'only_here', which nothing in subgraph",
    ),
    "undefined in a function": (edited(undefined_in_a_function), "reads 'w', which nothing in function 'f'"),
    "undefined output": (edited(lambda m: m.graph.node.pop()), "output 'y' is not defined"),
    "output from outside": (edited(output_from_outside), "output 'x' is not made by a node of subgraph"),
    "defined twice": (edited(lambda m: m.graph.node.append(m.graph.node[0])), "value 'm' is defined twice"),
    "input twice": (edited(lambda m: m.graph.input.append(m.graph.input[0])), "value 'x' is defined twice"),
    "terabytes": (edited(terabytes), r"'w' claims 4,398,046,511,104 bytes but has 48,000"),
    "terabytes without data": (edited(terabytes_without_data), "'w' .* claims 4,398,046,511,104 bytes but"),
    "overflow": (edited(overflow), "'w' claims"),
    "negative dim": (edited(lambda m: m.graph.initializer[0].dims.__setitem__(0, -1)), "negative dim -1"),
    "unknown dtype": (edited(lambda m: setattr(m.graph.initializer[0], "data_type", 77)), "unknown type 77"),
    "no operator": (edited(lambda m: m.graph.node[0].ClearField("op_type")), "node 'm' .* no operator type"),
    "name not UTF-8": (linear().SerializeToString().replace(b"MatMul", b"Mat\xff\xfel"), "is not UTF-8"),
    "nameless weight": (
        edited(lambda m: m.graph.initializer[0].ClearField("name")),
        "initializer .* no name",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_models_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    data, message = INVALID[case]
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(InvalidModelError, match=message) as caught:
        Model.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: setattr(m.opset_import[0], "version", 999), "opset 999 is newer"),
        (lambda m: setattr(m, "ir_version", 99), "IR version 99 is newer"),
        (lambda m: m.training_info.add(), "training_info"),
    ],
    ids=["opset", "IR version", "training"],
)
def test_what_cannot_be_kept_is_refused(
    edit: Callable[[onnx.ModelProto], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "new.onnx"
    path.write_bytes(edited(edit))
    with pytest.raises(UnsupportedModelError, match=message):
        Model.load(path)


def test_every_truncation_is_refused_or_lacks_only_what_follows(tmp_path: Path) -> None:
    data, path = linear().SerializeToString(), tmp_path / "short.onnx"
    for end in range(0, len(data), 997):
        path.write_bytes(data[:end])
        with pytest.raises(InvalidModelError):
            Model.load(path)


EXTERNAL: dict[str, tuple[dict[str, str | int], str]] = {
    "missing": ({"location": "gone.bin"}, "'gone.bin' of tensor 'w' is missing"),
    "no location": ({"location": ""}, "is refused"),
    "offset beyond the file": ({"offset": 1 << 40}, "claims 48,000 bytes but has 48,000 at offset"),
    "end beyond the file": ({"offset": 513}, r"'w.bin' \(48,512 bytes\)"),
    "wrong length": ({"length": 100}, "claims 48,000 bytes but has 100"),
    "negative offset": ({"offset": -4}, "negative"),
    "no number": ({"offset": "half"}, "is no number"),
    "parent": ({"location": "../w.bin"}, "must be a path inside the model's folder"),
    "hidden parent": ({"location": "sub/../../w.bin"}, "must be a path inside the model's folder"),
    "absolute": ({"location": "/etc/passwd"}, "must be a path inside the model's folder"),
    "memory address": ({"location": "*/_ORT_MEM_ADDR_/*"}, "missing"),
    "folder": ({"location": "sub"}, "is not a file"),
    "link": ({"location": "link.bin"}, "is a link out of the model's folder"),
    "link to a folder": ({"location": "away/w.bin"}, "is a link out of the model's folder"),
    "fifo": ({"location": "fifo"}, "is not a file"),
    "NUL": ({"location": "w\0.bin"}, "must be a path inside"),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_bad_external_data_is_refused(case: str, tmp_path: Path) -> None:
    entries, message = EXTERNAL[case]
    home, outside = tmp_path / "home", tmp_path / "outside"
    for folder in home / "sub", outside:
        folder.mkdir(parents=True)
    path = external(home, **entries)
    for copy in outside / "w.bin", tmp_path / "w.bin":
        copy.write_bytes((home / "w.bin").read_bytes())
    (home / "link.bin").symlink_to(outside / "w.bin")
    (home / "away").symlink_to(outside)
    os.mkfifo(home / "fifo")
    with pytest.raises(InvalidModelError, match=message) as caught:
        Model.load(path)
    assert "\n" not in str(caught.value)


def test_links_inside_the_folder_and_subfolders_are_fine(tmp_path: Path) -> None:
    path = external(tmp_path, location="sub/link.bin")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link.bin").symlink_to("../w.bin")
    tensor = Model.load(path).ir.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.tobytes() == linear().graph.initializer[0].raw_data


def test_external_data_in_a_protobuf_without_a_path_is_refused(tmp_path: Path) -> None:
    proto = onnx.load(external(tmp_path), load_external_data=False)
    with pytest.raises(InvalidModelError, match="give its path"):
        Model.of(proto)


def test_thousands_of_weights_need_one_descriptor(tmp_path: Path) -> None:
    model = linear()
    for index in range(3000):
        model.graph.initializer.append(
            numpy_helper.from_array(np.full(1024, index, np.float32), f"extra{index}")
        )
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    before = len(os.listdir("/proc/self/fd"))
    loaded = Model.load(tmp_path / "in.onnx")
    assert len(os.listdir("/proc/self/fd")) - before <= 2
    loaded.save(tmp_path / "out.onnx", external_data=True)
    assert Model.load(tmp_path / "out.onnx").ir.graph.initializers["extra2999"].const_value is not None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    path.write_bytes(linear().SerializeToString())
    return path


def test_no_such_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        Model.load(tmp_path / "gone.onnx")
    with pytest.raises(UsageError, match="is a folder"):
        Model.load(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_input(source: Path) -> None:
    source.chmod(0)
    with pytest.raises(SystemRefusedError, match="Permission denied"):
        Model.load(source)


def test_bad_outputs_are_usage_errors(source: Path, tmp_path: Path) -> None:
    model = Model.load(source)
    with pytest.raises(UsageError, match="does not exist"):
        model.save(tmp_path / "missing" / "out.onnx")
    with pytest.raises(UsageError, match="it is a folder"):
        model.save(tmp_path)
    (tmp_path / "alias.onnx").symlink_to(source)
    for alias in source, tmp_path / "alias.onnx", tmp_path / "in" / ".." / "in" / "model.onnx":
        with pytest.raises(UsageError, match="is the input"):
            model.save(alias)
    assert source.read_bytes() == linear().SerializeToString()
    assert [path.name for path in source.parent.iterdir()] == ["model.onnx"]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 20,000 bytes: the system refuses with EFBIG as it would with ENOSPC."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("external_data", [False, True])
@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_nothing_behind(external_data: bool, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"the output of an earlier run")
    with pytest.raises(SystemRefusedError, match=r"cannot write .*out\.onnx: File too large"):
        Model.of(linear()).save(out, external_data=external_data)
    assert out.read_bytes() == b"the output of an earlier run"
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_a_crash_of_the_caller_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt() -> None:
        with Model.of(linear()).stage(tmp_path / "out.onnx", external_data=True):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_commit_leaves_nothing_behind(tmp_path: Path) -> None:
    with Model.of(linear()).stage(tmp_path / "out.onnx", external_data=True) as staged:
        (tmp_path / "out.onnx").mkdir()
        with pytest.raises(SystemRefusedError, match="directory"):
            staged.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


_KILLED = """
import sys, time
from pathlib import Path
from graphopt.storage.files import Staged

def write(file):
    file.write(b"half of it")
    print("writing", flush=True)
    time.sleep(60)

staged = Staged(Path(sys.argv[1]))
staged.write(write, staged.free_name(".data"))
"""


@contextmanager
def writing(out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, in the middle of writing a file; it is killed in the end."""
    command = [sys.executable, "-c", _KILLED, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        yield child
        child.send_signal(signal.SIGKILL)


def age(folder: Path) -> None:
    """Let a folder and its files be of long ago."""
    for path in (*folder.iterdir(), folder):
        os.utime(path, (0, 0))


def test_after_kill_9_only_a_dot_temporary_remains_until_the_next_day(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    with writing(out):
        pass
    assert out.read_bytes() == b"old"
    left, name = sorted(tmp_path.iterdir())
    assert name == out
    assert left.name.startswith(".out.onnx.")
    assert left.name.endswith(".tmp")
    Model.of(linear()).save(out)
    assert set(tmp_path.iterdir()) == {out, left}
    age(left)
    Model.of(linear()).save(out)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path.parent, True)])
def test_what_is_no_folder_of_a_killed_process_stays(make: Callable[[Path], None], tmp_path: Path) -> None:
    other = tmp_path / ".out.onnx.0123abcd.tmp"
    make(other)
    os.utime(other, (0, 0), follow_symlinks=False)
    Model.of(linear()).save(tmp_path / "out.onnx")
    assert os.path.lexists(other)


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with writing(out):
        (folder,) = tmp_path.iterdir()
        age(folder)
        Model.of(linear()).save(out)
        assert set(tmp_path.iterdir()) == {out, folder}


def test_old_external_data_is_never_written_over(tmp_path: Path) -> None:
    model, out = Model.of(linear()), tmp_path / "out.onnx"
    model.save(out, external_data=True)
    first = Model.load(out)
    with model.stage(out, external_data=True) as staged:
        assert (tmp_path / "out.onnx.data").stat().st_size > 0
        staged.commit()
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 3
    assert {"out.onnx", "out.onnx.data"} < names
    expected = linear().graph.initializer[0].raw_data
    for held in first, Model.load(out):
        tensor = held.ir.graph.initializers["w"].const_value
        assert tensor is not None
        assert tensor.tobytes() == expected


def test_files_have_the_permissions_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Model.of(linear()).save(tmp_path / "out.onnx", external_data=True)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "report.json", "{}")
    assert (tmp_path / "report.json").read_text() == "{}"
    with pytest.raises(UsageError):
        write_text(tmp_path / "missing" / "report.json", "{}")
    with Staged(tmp_path / "other.json") as staged:
        staged.write(lambda file: None)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_every_error_is_of_the_family() -> None:
    for error in InvalidModelError, UnsupportedModelError, UsageError, SystemRefusedError:
        assert issubclass(error, GraphoptError)
