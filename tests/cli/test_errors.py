"""Whatever is wrong: one line, the documented exit code, the input untouched, nothing left behind."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto

from .conftest import TINY, Call, start

Broken = Callable[[Path], None]


def _save(path: Path, text: str) -> None:
    onnx.save(onnx.parser.parse_model(text), path)


def _truncated(path: Path) -> None:
    weights = ", ".join("0.5" for _ in range(3000))
    _save(
        path,
        TINY.replace("float[4] w = {1,2,3,4}", f"float[3000] v = {{{weights}}}, float[4] w = {{1,2,3,4}}"),
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _random(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


def _newer_opset(path: Path) -> None:
    _save(path, TINY.replace('"" : 17', '"" : 999'))


def _no_opset(path: Path) -> None:
    _save(path, TINY.replace('"" : 17', '"" : 0'))


def _cyclic(path: Path) -> None:
    _save(path, TINY.replace("same = Identity(x)", "same = Add(x, y)"))


def _undefined(path: Path) -> None:
    _save(path, TINY.replace("Identity(x)", "Identity(nowhere)"))


def _terabytes(path: Path) -> None:
    model = onnx.parser.parse_model(TINY)
    model.graph.initializer[0].dims[:] = [1 << 42]
    onnx.save(model, path)


def _external(path: Path, location: str, offset: int = 0) -> None:
    """The tiny model whose weight lies at a location."""
    model = onnx.parser.parse_model(TINY)
    tensor = model.graph.initializer[0]
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.data_location = "w", TensorProto.FLOAT, TensorProto.EXTERNAL
    tensor.dims.append(4)
    for key, value in (("location", location), ("offset", str(offset)), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def _weights(path: Path) -> Path:
    np.ones(4, np.float32).tofile(path)
    return path


def _missing_weights(path: Path) -> None:
    _external(path, "gone.bin")


def _beyond_weights(path: Path) -> None:
    _external(path, _weights(path.with_name("w.bin")).name, offset=8)


def _weights_above(path: Path) -> None:
    _weights(path.parent.parent / "w.bin")
    _external(path, "../w.bin")


def _absolute_weights(path: Path) -> None:
    _external(path, str(_weights(path.with_name("w.bin"))))


def _linked_weights(path: Path) -> None:
    path.with_name("w.bin").symlink_to(_weights(path.parent.parent / "w.bin"))
    _external(path, "w.bin")


BROKEN_MODELS: list[tuple[Broken, str]] = [
    (_truncated, "damaged|truncated|ends"),
    (_empty, "empty|no ONNX|not an ONNX"),
    (_random, "not an ONNX|damaged|truncated|ends"),
    (_newer_opset, "opset"),
    (_no_opset, "opset"),
    (_cyclic, "cycl"),
    (_undefined, "nowhere"),
    (_terabytes, "w"),
    (_missing_weights, "gone.bin"),
    (_beyond_weights, "w.bin"),
    (_weights_above, "w.bin"),
    (_absolute_weights, "w.bin"),
    (_linked_weights, "w.bin"),
]


def _state(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, dot-temporaries too, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _assert_one_line(err: str) -> None:
    assert err.startswith("graphopt: error: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err and "bug in graphopt" not in err


@pytest.mark.parametrize("command", ["optimize", "inspect"])
@pytest.mark.parametrize(("spoil", "told"), BROKEN_MODELS, ids=lambda x: getattr(x, "__name__", None))
def test_broken_model(call: Call, tmp_path: Path, command: str, spoil: Broken, told: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "model.onnx"
    spoil(path)
    before = _state(tmp_path)
    outcome = call(command, path, *([folder / "out.onnx"] if command == "optimize" else []))
    assert outcome.code == 3, outcome
    _assert_one_line(outcome.err)
    assert "model.onnx" in outcome.err
    assert any(word in outcome.err for word in told.split("|")), outcome.err
    assert outcome.out == ""
    assert _state(tmp_path) == before


USAGE = {
    "no such input": (["optimize", "{folder}/none.onnx", "{out}"], "none.onnx"),
    "input is a folder": (["optimize", "{folder}", "{out}"], "folder"),
    "unknown option": (["optimize", "{tiny}", "{out}", "--fats"], "--fats"),
    "no output named": (["optimize", "{tiny}"], "OUT.onnx"),
    "unknown command": (["optimise", "{tiny}", "{out}"], "optimise"),
    "unknown pass": (["optimize", "{tiny}", "{out}", "--passes", "fold-konstants"], "fold-constants"),
    "unknown option of a pass": (
        ["optimize", "{tiny}", "{out}", "--passes", "fold-constants{x=1}"],
        "max-growth",
    ),
    "option of the wrong type": (
        ["optimize", "{tiny}", "{out}", "--passes", "fold-constants{max-growth=much}"],
        "max-growth",
    ),
    "unreadable passes": (["optimize", "{tiny}", "{out}", "--passes", "a{b"], "a{b"),
    "unknown pass to print after": (["optimize", "{tiny}", "{out}", "--print-after", "nope"], "nope"),
    "unknown target": (["optimize", "{tiny}", "{out}", "--target", "tpu"], "cpu, cuda"),
    "unknown pass to show": (["passes", "nope"], "nope"),
    "output folder is missing": (["optimize", "{tiny}", "{folder}/none/out.onnx"], "none"),
    "output is a folder": (["optimize", "{tiny}", "{folder}"], "folder"),
    "output is the input": (["optimize", "{tiny}", "{tiny}"], "--in-place"),
    "report folder is missing": (["optimize", "{tiny}", "{out}", "--report", "{folder}/none/r.json"], "none"),
    "report is a page": (["optimize", "{tiny}", "{out}", "--report", "{folder}/r.html"], "r.json"),
    "report is the input": (["optimize", "{tiny}", "{out}", "--report", "{tiny}"], "tiny.onnx"),
    "no such custom op library": (
        ["optimize", "{tiny}", "{out}", "--custom-ops", "{folder}/none.so"],
        "none.so",
    ),
    "custom op library that is none": (
        ["optimize", "{tiny}", "{out}", "--custom-ops", "{tiny}"],
        "tiny.onnx",
    ),
    "no such data": (["optimize", "{tiny}", "{out}", "--data", "{folder}/none.npz"], "none.npz"),
    "no such function": (["optimize", "{tiny}", "{out}", "--data", "none.module:samples"], "none.module"),
    "unreadable shape": (["optimize", "{tiny}", "{out}", "--shape", "x=axb"], "x=axb"),
    "shape of an unknown input": (["optimize", "{tiny}", "{out}", "--shape", "z=1x4"], "z"),
    "shape that does not fit": (["optimize", "{tiny}", "{out}", "--shape", "x=1x5"], "x"),
    "shape that does not fit, inspecting": (["inspect", "{tiny}", "--shape", "x=1x5"], "x"),
    "verify without a second model": (["verify", "{tiny}", "{folder}/none.onnx"], "none.onnx"),
    "bench without a second model": (["bench", "{tiny}", "{folder}/none.onnx"], "none.onnx"),
    "threads in words": (
        ["optimize", "{tiny}", "{out}", "--threads", "many"],
        "'many' is not a whole number",
    ),
    "negative threads": (["optimize", "{tiny}", "{out}", "--threads", "-1"], "--threads"),
    "negative seed": (["optimize", "{tiny}", "{out}", "--seed", "-1"], "--seed"),
    "negative time limit": (["optimize", "{tiny}", "{out}", "--time-limit", "-3"], "--time-limit"),
    "endless time limit": (["verify", "{tiny}", "{tiny}", "--time-limit", "inf"], "--time-limit"),
    "memory limit that is no number": (["bench", "{tiny}", "{tiny}", "--memory-limit", "nan"], "--memory"),
    "shapes beside data": (["optimize", "{tiny}", "{out}", "--data", "m:f", "--shape", "x=1x4"], "--shape"),
    "no such report": (["optimize", "{tiny}", "{out}", "--replay", "{folder}/r.json"], "r.json"),
    "passes beside a report": (
        ["optimize", "{tiny}", "{out}", "--replay", "{folder}/r.json", "--passes", "fold-constants"],
        "--passes",
    ),
    "each pass verified, or none": (
        ["optimize", "{tiny}", "{out}", "--no-verify", "--verify-each"],
        "--no-verify",
    ),
    "dump folder is a file": (["optimize", "{tiny}", "{out}", "--dump-dir", "{tiny}"], "no folder"),
}


@pytest.mark.parametrize(("arguments", "told"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage(call: Call, tiny: Path, arguments: list[str], told: str) -> None:
    before = _state(tiny.parent)
    names = {"tiny": str(tiny), "folder": str(tiny.parent), "out": str(tiny.with_name("out.onnx"))}
    for name, path in names.items():
        arguments = [text.replace(f"{{{name}}}", path) for text in arguments]
    outcome = call(*arguments)
    assert outcome.code == 2, outcome
    _assert_one_line(outcome.err)
    assert told in outcome.err
    assert outcome.out == ""
    assert _state(tiny.parent) == before


BAD_DATA = {
    "lacks an input": {"z": np.zeros((2, 1, 4), np.float32)},
    "wrong shape": {"x": np.zeros((2, 1, 5), np.float32)},
    "wrong type": {"x": np.zeros((2, 1, 4), np.int64)},
    "NaN": {"x": np.full((2, 1, 4), np.nan, np.float32)},
    "unknown input": {"x": np.zeros((2, 1, 4), np.float32), "z": np.zeros((2, 1), np.float32)},
    "no sample": {"x": np.zeros((0, 1, 4), np.float32)},
}


@pytest.mark.parametrize("arrays", BAD_DATA.values(), ids=BAD_DATA.keys())
@pytest.mark.parametrize("command", ["optimize", "verify"])
def test_bad_data(
    call: Call, tiny: Path, tmp_path: Path, arrays: dict[str, np.ndarray], command: str
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    before = _state(tiny.parent)
    second = tiny.with_name("out.onnx") if command == "optimize" else tiny
    outcome = call(command, tiny, second, "--data", tmp_path / "data.npz")
    assert outcome.code == 5, outcome
    _assert_one_line(outcome.err)
    assert "data.npz" in outcome.err
    assert _state(tiny.parent) == before


def test_output_that_is_no_regular_file(call: Call, tiny: Path) -> None:
    """A rename would put a file in its place; to /dev/null that does harm to the whole system."""
    pipe = tiny.with_name("pipe.onnx")
    os.mkfifo(pipe)
    for arguments in ([tiny, pipe], [tiny, tiny.with_name("out.onnx"), "--report", pipe]):
        outcome = call("optimize", *arguments)
        assert outcome.code == 2, outcome
        _assert_one_line(outcome.err)
        assert "pipe.onnx" in outcome.err
        assert pipe.is_fifo() and {path.name for path in tiny.parent.iterdir()} == {"tiny.onnx", "pipe.onnx"}


FUNCTIONS = {
    "raises": ("def samples():\n    raise ValueError('two\\nlines')", 5),
    "yields and raises": ("def samples():\n    yield {'x': 1 / 0}", 5),
    "returns nothing": ("def samples(): pass", 5),
    "cannot be imported": ("1 / 0", 2),
    "is no Python": ("def", 2),
}


@pytest.mark.parametrize(("content", "code"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_function_of_samples_that_fails(tiny: Path, tmp_path: Path, content: str, code: int) -> None:
    (tmp_path / "theirs.py").write_text(content)
    child = start("optimize", tiny, tiny.with_name("out.onnx"), "--data", "theirs:samples", cwd=tmp_path)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    _assert_one_line(err)
    assert "theirs:samples" in err and "bug" not in err


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 damaged"])
def test_data_that_is_no_archive(call: Call, tiny: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    outcome = call("optimize", tiny, tiny.with_name("out.onnx"), "--data", tmp_path / "data.npz")
    assert outcome.code == 5, outcome
    _assert_one_line(outcome.err)


def test_replay_of_something_else(call: Call, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    outcome = call("optimize", tiny, tiny.with_name("out.onnx"), "--replay", tmp_path / "r.json")
    assert outcome.code == 5
    _assert_one_line(outcome.err)


def test_unknown_custom_op_is_optimized_structurally(call: Call, tiny: Path) -> None:
    _save(
        tiny,
        TINY.replace('["" : 17]', '["" : 17, "mine" : 1]').replace(
            "y = Add(same, w)", "y = mine.Op(same, w)"
        ),
    )
    out = tiny.with_name("out.onnx")
    outcome = call("optimize", tiny, out)
    assert outcome.code == 0, outcome
    assert "structural only" in outcome.out
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Op"]


@pytest.mark.parametrize("command", ["optimize", "verify", "bench"])
def test_unknown_operators_of_the_standard_domain_are_invalid(call: Call, tiny: Path, command: str) -> None:
    _save(tiny, TINY.replace("Add(same, w)", "Addx(same, w)"))
    out = tiny.with_name("out.onnx")
    outcome = call(command, tiny, out if command == "optimize" else tiny)
    assert outcome.code == 3, outcome
    _assert_one_line(outcome.err)
    assert "'Addx' (opset 17)" in outcome.err
    assert not out.exists()


def test_a_memory_limit_that_is_too_small_is_named(call: Call, tiny: Path) -> None:
    outcome = call("optimize", tiny, tiny.with_name("out.onnx"), "--memory-limit", "0.01")
    assert outcome.code == 0, outcome
    assert "--memory-limit" in outcome.out
    assert "--custom-ops" not in outcome.out


@pytest.mark.parametrize("broken", ["a", "b"])
def test_bench_of_a_model_that_does_not_run(call: Call, tiny: Path, broken: str) -> None:
    other = tiny.with_name("other.onnx")
    text = TINY.replace('["" : 17]', '["" : 17, "mine" : 1]').replace(
        "y = Add(same, w)", "y = mine.Op(same, w)"
    )
    _save(other, text)
    outcome = call("bench", *((other, tiny) if broken == "a" else (tiny, other)))
    assert outcome.code == 3, outcome
    _assert_one_line(outcome.err)


def test_bench_of_models_with_other_inputs_says_which(call: Call, tiny: Path) -> None:
    other = tiny.with_name("other.onnx")
    _save(other, TINY.replace(" x)", " z)").replace("(x)", "(z)"))
    outcome = call("bench", tiny, other)
    assert outcome.code == 2, outcome
    _assert_one_line(outcome.err)
    assert "does not take what" in outcome.err and "'z'" in outcome.err and "ONNXRuntime" not in outcome.err


def test_without_onnx_runtime(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "onnxruntime.py").write_text("raise ImportError('not installed')")
    monkeypatch.syspath_prepend(tmp_path / "hidden")
    child = start("optimize", tiny, tiny.with_name("out.onnx"))
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    _assert_one_line(err)
    assert "graphopt[cpu]" in err


def test_strict_writes_nothing_unverified(call: Call, tiny: Path) -> None:
    outcome = call("optimize", tiny, tiny.with_name("out.onnx"), "--no-verify", "--strict")
    assert outcome.code == 4
    _assert_one_line(outcome.err)
    assert set(_state(tiny.parent)) == {"tiny.onnx"}


def test_models_that_differ(call: Call, tiny: Path) -> None:
    other = tiny.with_name("other.onnx")
    _save(other, TINY.replace("{1,2,3,4}", "{1,2,3,4.001}"))
    outcome = call("verify", tiny, other)
    assert outcome.code == 4
    assert "failed" in outcome.out and outcome.err == ""


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("option", [[], ["--external-data"]])
def test_disk_full(heavy: Path, option: list[str]) -> None:
    before = _state(heavy.parent)
    child = start(
        "optimize", heavy, heavy.with_name("out.onnx"), "--no-verify", *option, preexec_fn=_limit_files
    )
    out, err = child.communicate(timeout=120)
    assert child.returncode == 1, err
    _assert_one_line(err)
    assert "out.onnx" in err
    assert out == ""
    assert _state(heavy.parent) == before


def test_folder_without_permission(tiny: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tiny.parent.chmod(0o500)
    try:
        child = start("optimize", tiny, tiny.with_name("out.onnx"))
        _, err = child.communicate(timeout=120)
    finally:
        tiny.parent.chmod(0o700)
    assert child.returncode == 1
    _assert_one_line(err)


def _listen() -> None:
    """A job in the background of a shell inherits that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def stuck(heavy: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """An ``optimize`` in the middle of its verification, with the result staged."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def samples():\n"
        "    pathlib.Path('started').touch()\n"
        "    time.sleep(600)\n"
        "    yield {}\n"
    )
    arguments = ("optimize", heavy, heavy.with_name("out.onnx"), "--data", "slow:samples")
    child = start(*arguments, cwd=tmp_path, preexec_fn=_listen)
    deadline = time.monotonic() + 120
    while not (tmp_path / "started").exists():
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.02)
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(heavy: Path, stuck: subprocess.Popen[str], number: signal.Signals) -> None:
    stuck.send_signal(number)
    out, err = stuck.communicate(timeout=60)
    assert stuck.returncode == 130
    _assert_one_line(err)
    assert "interrupted" in err and out == ""
    assert set(_state(heavy.parent)) == {"heavy.onnx"}


def test_killed(heavy: Path, stuck: subprocess.Popen[str]) -> None:
    content = heavy.read_bytes()
    stuck.kill()
    stuck.communicate(timeout=60)
    assert heavy.read_bytes() == content
    assert [path.name for path in heavy.parent.iterdir() if path.name[0] != "."] == ["heavy.onnx"]
