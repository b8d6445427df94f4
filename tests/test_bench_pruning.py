"""The comparison of pruning: cuts, what is left in a file, who is compared with whom, goals and tables."""

import math
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tools import models
from tools.bench import descendants, pages
from tools.bench.pruning import command, contestants, goals, judge, memory, tables, targets
from tools.bench.quantization import tasks
from tools.bench.quantization.task import Example, Task


def _tensor(name, array):
    return numpy_helper.from_array(np.asarray(array, np.float32), name)


def _save(path, nodes, weights, widths=(8, 4)):
    ends = [helper.make_tensor_value_info(name, 1, ["n", w]) for name, w in zip("xy", widths, strict=True)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_every_task_has_a_recipe_and_every_goal_a_task_and_a_cut():
    assert set(tasks.PRUNING) <= set(models.recipes())
    assert {goal.task for goal in goals.GOALS} <= set(tasks.PRUNING)
    assert {goal.cut for goal in goals.GOALS} <= set(contestants.ALL)


def test_floor_runs_only_where_a_goal_asks_for_it():
    assert command.takes_part("graphopt, sparsity 80 %", "fashion_cnn")
    assert not command.takes_part("graphopt, sparsity 80 %", "minilm")
    assert command.takes_part("onnxsim wanda, 2:4", "minilm")


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("graphopt, sparsity 50 %", ["--sparsity", "0.5"]),
        ("graphopt, 2:4", ["--sparsity", "2:4"]),
        ("graphopt, channels 30 %", ["--channels", "0.3"]),
        ("graphopt, half the MACs and int8", ["--channels", "0.25", "--precision", "int8"]),
        ("onnxsim sparsegpt, 2:4", ["sparsegpt", "2:4"]),
        ("onnxsim wanda-channels, channels 70 %", ["wanda-channels", "0.7"]),
    ],
)
def test_command_says_what_the_name_says(tmp_path, name, tail):
    line = contestants.command(name, tmp_path, tmp_path, tmp_path, "peers")
    place = line.index(tail[0])
    assert line[place : place + len(tail)] == tail
    assert line[0] == ("peers" if name in contestants.PEERS else sys.executable)
    assert ("--data" in line) == (name not in contestants.PEERS)


def test_peers_know_every_method():
    peer = _peer()
    assert {method for method, _ in contestants.PEERS.values()} == set(peer.METHODS)
    assert peer.amount("0.3") == {"sparsity": 0.3}
    assert peer.amount("2:4") == {"n": 2, "m": 4}


def _peer():
    pytest.importorskip("onnxsim")
    from tools.bench.pruning import peer

    return peer


@pytest.mark.parametrize("method", ["magnitude", "global-magnitude", "wanda", "sparsegpt"])
def test_peer_makes_half_of_the_weights_zero(tmp_path, monkeypatch, method):
    peer, rng = _peer(), np.random.default_rng(0)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    _save(tmp_path / "m.onnx", [node], [_tensor("w", rng.normal(size=(8, 4)))])
    peer.samples.write([{"x": rng.normal(size=(16, 8)).astype(np.float32)}] * 2, tmp_path / "samples")
    arguments = [str(tmp_path / name) for name in ("m.onnx", "samples", "r.onnx")]
    monkeypatch.setattr(sys, "argv", ["peer", *arguments, method, "0.5"])
    peer.main()
    found = judge.contents(tmp_path / "r.onnx")
    assert found["weights"] == 32
    assert found["zeros"] == pytest.approx(16, abs=1)  # SparseGPT's threshold is its own


def test_peer_takes_channels_away(tmp_path, monkeypatch):
    peer, rng = _peer(), np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    weights = [_tensor("v", rng.normal(size=(8, 6))), _tensor("w", rng.normal(size=(6, 4)))]
    _save(tmp_path / "m.onnx", nodes, weights)
    peer.samples.write([{"x": rng.normal(size=(16, 8)).astype(np.float32)}] * 2, tmp_path / "samples")
    arguments = [str(tmp_path / name) for name in ("m.onnx", "samples", "r.onnx")]
    for method in ("channels", "wanda-channels"):
        monkeypatch.setattr(sys, "argv", ["peer", *arguments, method, "0.5"])
        peer.main()
        assert judge.contents(tmp_path / "r.onnx")["weights"] == 8 * 3 + 3 * 4


def test_contents_are_of_weights_that_are_read(tmp_path):
    constant = helper.make_node("Constant", [], ["w"], value=_tensor("", np.eye(8)[:, :4]))
    nodes = [constant, helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    unread = [_tensor("b", np.zeros(4)), _tensor("old", np.zeros((50, 50)))]
    _save(tmp_path / "m.onnx", nodes, unread)
    found = judge.contents(tmp_path / "m.onnx")
    assert (found["weights"], found["zeros"]) == (32, 28)
    assert found["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert found["compressed"] < found["bytes"] / 10  # 10 kB of zeros


class Sorting(Task):
    """The class is the largest input."""

    name, kind, metric = "sorting", "numbers", "right, %"

    def calibration(self):
        return [{"x": np.eye(8, dtype=np.float32)[:1]}] * 3

    def examples(self):
        return [Example({"x": np.eye(8, dtype=np.float32)[:4]}, np.arange(4))]


def test_judge_tells_what_is_left(tmp_path, monkeypatch):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    _save(tmp_path / "m.onnx", [node], [_tensor("w", np.eye(8)[:, :4] + 0.1)])
    _save(tmp_path / "sparse.onnx", [node], [_tensor("w", np.eye(8)[:, :4])])
    thin = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["y"]),
    ]
    _save(tmp_path / "thin.onnx", thin, [_tensor("a", np.ones((8, 1))), _tensor("b", np.ones((1, 4)))])
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    task = Sorting()
    monkeypatch.setattr(Sorting, "model", lambda self: tmp_path / "m.onnx")
    monkeypatch.setattr(tasks, "load", lambda name: task)
    about = judge.prepare({"prepare": "sorting", "samples": str(tmp_path / "s"), "most": 2})
    assert about["calibration"] == 2
    assert about["model"] == str(tmp_path / "exact.onnx")
    files = {name: str(tmp_path / f"{name}.onnx") for name in ("sparse", "thin", "broken")}
    request = {
        "task": "sorting",
        "model": about["model"],
        "samples": str(tmp_path / "s"),
        "models": files,
        "seconds": 0.02,
    }
    facts = judge.judge(request | {"macs": True})
    assert {name: facts[name].get("macs") for name in facts} == {
        "fp32": 32,
        "sparse": 32,
        "thin": 12,
        "broken": None,
    }
    assert (facts["sparse"]["zeros"], facts["thin"]["weights"]) == (28, 12)
    assert facts["sparse"]["metric"] == 100 > facts["thin"]["metric"]
    assert "integer_macs" not in facts["sparse"]
    assert facts["broken"]["why"].startswith("does not run")


def _entry(metric=90.0, sqnr=20.0, speeds=(1.0, 1.0), *, weights=100, zeros=50, macs=1000):
    load = {name: {"ratio": ratio} for name, ratio in zip(("batch 1", "batch 32"), speeds, strict=True)}
    about = {"weights": weights, "zeros": zeros, "macs": macs, "bytes": 4000, "compressed": 2000}
    return {"metric": metric, "sqnr": sqnr, "agreement": 99.0, "speed": load, "seconds": 1.5, **about}


def _facts(cut, ours, **peers):
    names = {f"onnxsim {method.replace('_', '-')}, {cut}": entry for method, entry in peers.items()}
    original = {"metric": 92.0, "weights": 100, "zeros": 0, "macs": 1000, "bytes": 4000, "compressed": 3900}
    about = {"metric": "top-1, %", "agreement_is": "equal, %", "calibration": 3}
    return about | {"contestants": {"fp32": original, f"graphopt, {cut}": ours, **names}}


def _verdict(cut, ours, **peers):
    (line,) = targets.table({"cnn": _facts(cut, ours, **peers)}).splitlines()[2:]
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.mark.parametrize(
    ("metric", "sqnr", "word"), [(91.0, 10.0, "yes"), (90.5, 31.0, "yes"), (90.5, 30.0, "no")]
)
def test_sparsity_beats_the_best_of_all_methods(metric, sqnr, word):
    rivals = {"wanda": _entry(90.9, 5.0), "sparsegpt": _entry(80.0, 30.0)}
    cells = _verdict("sparsity 50 %", _entry(metric, sqnr), **rivals)
    assert cells[-1] == word
    assert cells[3] == f"{92 - metric:.2f} (1.10)"


def test_channels_must_be_faster_at_every_workload():
    rival = _entry(80.0, 5.0, (1.2, 1.3), weights=60, zeros=0, macs=500)
    for speeds, word in (((1.3, 1.4), "yes"), ((1.3, 1.3), "no"), ((1.1, 2.0), "no")):
        ours = _entry(91.0, 20.0, speeds, weights=60, zeros=0, macs=500)
        assert _verdict("channels 50 %", ours, channels=rival)[-1] == word


def test_only_those_that_cut_as_deep_are_compared():
    idle = _entry(92.0, math.inf, weights=100, zeros=0)
    assert _verdict("sparsity 50 %", _entry(), wanda=idle)[-1] == "the peer cuts nothing"
    dense_layers_only = _entry(91.9, 30.0, (1.1, 1.1), weights=50, zeros=0, macs=960)
    ours = _entry(90.0, 20.0, (1.5, 1.5), weights=60, zeros=0, macs=500)
    assert _verdict("channels 50 %", ours, wanda_channels=dense_layers_only)[-1] == "the peer cuts nothing"
    timid = _entry(90.5, 30.0, (1.2, 1.2), weights=80, zeros=0, macs=800)
    assert _verdict("channels 50 %", ours, channels=timid)[-1] == "no peer cuts as deep"
    worse = _entry(89.5, 15.0, (1.2, 1.2), weights=80, zeros=0, macs=800)
    assert _verdict("channels 50 %", ours, channels=worse)[-1] == "yes"
    ours = _entry(91.9, 40.0, weights=100, zeros=30)
    assert _verdict("sparsity 50 %", ours, wanda=_entry(70.0, 2.0))[-1] == "cuts less"


def test_contestants_that_failed_say_nothing():
    assert targets.table({"cnn": _facts("sparsity 50 %", {"why": "exit 2"})}) == ""
    assert _verdict("sparsity 50 %", _entry(), wanda={"why": "exit 1"})[-1] == "no peer took part"
    assert _verdict("sparsity 50 %", _entry())[-1] == "no peer took part"
    facts = _facts("sparsity 50 %", _entry(), wanda={"why": "exit 1"}, magnitude=_entry(70.0))
    assert targets.shown(facts["contestants"]) == [
        "fp32",
        "graphopt, sparsity 50 %",
        "onnxsim magnitude, sparsity 50 %",
    ]


@pytest.mark.parametrize(
    ("metric", "speeds", "word"),
    [(91.0, (1.5, 1.4), "yes"), (90.7, (1.5, 1.5), "no"), (91.9, (2.0, 1.3), "no")],
)
def test_goals_bound_drop_and_speed(metric, speeds, word):
    facts = _facts("channels 50 %", _entry(metric, speeds=speeds))
    assert goals.table({"fashion_resnet": facts}).splitlines()[-1].endswith(f"| 1.4 | {word} |")


def test_goals_say_what_failed_and_skip_what_was_not_run():
    facts = _facts("channels 50 %", {"why": "exit 4"})
    assert goals.table({"fashion_resnet": facts}).splitlines()[-1].endswith("| no: exit 4 |")
    assert goals.table({"fashion_mlp": facts}) == ""


def test_table_of_a_task():
    text = tables.page({"cnn": _facts("sparsity 50 %", _entry(), sparsegpt=_entry(91.0) | {"macs": None})})
    assert "| fp32 | 92.00 | – | – | 1 | 100 | 0 | 100 | 4 | 4 | – | – |  |" in text
    measured = "90.00 | 99.00 | 20.0 | 1.00 / 1.00 | 100 | 50 | 100 | 4 | 2 | 1.5 | – |  |"
    assert f"| graphopt, sparsity 50 % | {measured}" in text
    assert "| onnxsim sparsegpt, sparsity 50 % | 91.00 | 99.00 | 20.0 | 1.00 / 1.00 | 100 | 50 | – |" in text
    assert "### Beside the peer" in text and "### The floor" not in text


@pytest.mark.parametrize("part", ["pruning", memory.PART])
def test_documentation_has_the_markers(part):
    assert pages.replaced(pages.DOCS.read_text(), part, "new text").count("new text") == 1


def test_contestants_of_the_memory_table_exist():
    assert set(memory.NAMES) <= set(contestants.ROSTER.names)


def test_memory_is_of_all_descendants_and_shared_pages_count_once():
    """A process holds 80 MB and forks one that holds the same pages and 40 MB of its own."""
    child = "b = bytearray(40_000_000); b[::4096] = b'x' * len(b[::4096])"
    source = f"""
import os, sys
a = bytearray(80_000_000); a[::4096] = b'x' * len(a[::4096])
if os.fork() == 0:
    {child}
    os.write(1, b'ready')
sys.stdin.read()
"""
    before = descendants.memory(os.getpid())  # workers of other tests
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.read(5) == b"ready"
        found = descendants.memory(os.getpid()) - before
        process.communicate()
    assert 120e6 < found < 180e6  # each as its own would be 200 MB and two interpreters


def test_peak_outlives_the_process_that_had_it():
    source = "import time; b = bytearray(60_000_000); b[::4096] = b'x' * len(b[::4096]); time.sleep(1)"
    with descendants.peak() as peak:
        subprocess.run([sys.executable, "-c", source], check=True)
    assert peak.bytes > 60e6
    assert descendants.proportional(2**22 + 1) == 0  # no such process
