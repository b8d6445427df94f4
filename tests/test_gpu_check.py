"""The check on a GPU, as far as it goes without one: what is missing, parity, verdicts, exit codes."""

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.runtime.worker import Worker
from graphopt.target import CPU, Target
from tools import models
from tools.bench.material import Material
from tools.gpu_check import __main__ as command
from tools.gpu_check import check
from tools.gpu_check.table import table

CUDA = Target.named("cuda")


def _chosen(tmp_path, provider="cpu", **changes):
    facts = {"provider": provider, "models": ["fashion_mlp"], "types": ["fp16"], "latency": 0.02}
    facts |= {"measured": False, "work": tmp_path / "work", "json": tmp_path / "gpu.json"}
    return argparse.Namespace(**facts | changes)


def test_without_a_device_one_line_and_the_exit_code_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Worker, "providers", lambda self: ["CPUExecutionProvider"])
    assert command.run(_chosen(tmp_path, "cuda")) == command.NO_DEVICE == 3
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert told.err.startswith("nothing checked, 'cuda' does not run here: ")
    assert not (tmp_path / "gpu.json").exists()


def _halved(path, factor=1.0):
    """fashion_mlp with its weights rounded to half, times a factor; it still runs on float32."""
    model = onnx.load(models.path("fashion_mlp"))
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            scaled = values * np.float32(factor)
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    onnx.save(model, path)


def _converting(monkeypatch, factor=1.0):
    """Let conversions give the rounded model; returns the commands that were to run."""
    commands = []

    def convert(line, sources, result, limits):
        commands.append(line)
        _halved(result, factor)
        return {"seconds": 1.0, "peak_bytes": 1, "why": ""}

    monkeypatch.setattr(check, "convert", convert)
    return commands


def _measured(monkeypatch, verdict):
    facts = {"fp32_ms": 2.0, "ms": 1.0, "ratio": 2.0, "noise": 0.1, "verdict": verdict}
    monkeypatch.setattr(check, "latency", lambda *_: facts)


def test_dry_run_converts_for_cuda_and_compares_on_the_cpu(tmp_path, monkeypatch, capsys):
    commands = _converting(monkeypatch)
    _measured(monkeypatch, "faster")
    assert command.run(_chosen(tmp_path)) == command.ALL_RIGHT
    (line,) = commands
    assert line[line.index("--target") + 1] == "cuda" and line[line.index("--precision") + 1] == "fp16"
    (facts,) = json.loads((tmp_path / "gpu.json").read_text()).values()
    assert facts["finite"] and 40 < facts["sqnr"] < 100 and facts["fp32_sqnr"] > 100
    assert "| fashion_mlp | fp16 | 0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("factor", "verdict", "why"),
    [
        (0.0, "faster", "NaN, Inf or zeros"),
        (1.2, "faster", "SQNR below 20 dB"),
    ],
)
def test_what_is_wrong_is_named_and_gives_exit_code_1(tmp_path, monkeypatch, factor, verdict, why):
    _converting(monkeypatch, factor)
    _measured(monkeypatch, verdict)
    assert command.run(_chosen(tmp_path)) == command.SOME_WRONG
    (facts,) = json.loads((tmp_path / "gpu.json").read_text()).values()
    assert facts["why"].startswith(why)


def test_slower_is_wrong_on_a_gpu_if_graphopt_measured_too(tmp_path):
    facts = {"finite": True, "sqnr": 60.0, "verdict": "slower"}
    assert check.wrong(facts, check.Place("cuda", CUDA, tmp_path, 1, True)) == "slower than the original"
    assert check.wrong(facts, check.Place("cuda", CUDA, tmp_path, 1, False)) == ""
    assert check.wrong(facts, check.Place("cuda", CPU, tmp_path, 1, True)) == ""


def test_dry_run_leaves_out_what_has_no_kernels_on_the_cpu(tmp_path, monkeypatch, capsys):
    _converting(monkeypatch)
    _measured(monkeypatch, "same")
    command.run(_chosen(tmp_path, types=None))
    assert [key for key in json.loads((tmp_path / "gpu.json").read_text())] == ["fashion_mlp fp16"]


def test_dry_run_rounds_what_the_cpu_would_not(tmp_path):
    """Numbers beyond half's range pass through an fp16 model on the CPU as if nothing had happened."""
    model = onnx.load(models.path("fashion_mlp"))
    half = onnx.TensorProto.FLOAT16
    big = numpy_helper.from_array(np.array(6e4, np.float32).astype(np.float16), "big")
    model.graph.initializer.append(big)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "exact"
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["exact"], ["narrow"], to=half),
            helper.make_node("Mul", ["narrow", "big"], ["huge"]),
            helper.make_node("Div", ["huge", "big"], ["back"]),
            helper.make_node("Cast", ["back"], ["logits"], to=onnx.TensorProto.FLOAT),
        ]
    )
    onnx.save(model, tmp_path / "r.onnx")
    place = check.Place("cuda", CPU, tmp_path, 0.02)
    assert not check.parity(Material("fashion_mlp"), tmp_path / "r.onnx", place)["finite"]


def test_latency_is_measured_where_the_models_run(tmp_path):
    _halved(tmp_path / "r.onnx")
    place = check.Place("cuda", CPU, tmp_path, 0.02)
    facts = check.latency(Material("fashion_mlp"), tmp_path / "r.onnx", place)
    assert facts["ratio"] > 0 and facts["ms"] > 0 and facts["verdict"] in ("faster", "same", "slower")


def test_conversion_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "convert", lambda *_: {"seconds": 1.0, "why": "exit 2: no"})
    assert check.check("fashion_mlp", "fp16", check.Place("cuda", CPU, tmp_path, 0.02))["why"] == "exit 2: no"


def test_why_nothing_is_half_is_told(tmp_path, monkeypatch):
    """CPUs have no bfloat16, and the table says so."""

    def convert(line, sources, result, limits):
        _halved(result)
        Path(line[line.index("--report") + 1]).write_text('{"notes": ["bf16 not achieved, as it was: no"]}')
        return {"seconds": 1.0, "peak_bytes": 1, "why": ""}

    monkeypatch.setattr(check, "convert", convert)
    facts = check.check("fashion_mlp", "bf16", check.Place("cuda", CPU, tmp_path, 0.02))
    assert "| yes | bf16 not achieved, as it was: no |" in table({("fashion_mlp", "bf16"): facts})


def test_result_that_does_not_run_is_told(tmp_path, monkeypatch):
    def convert(line, sources, result, limits):
        node = helper.make_node("NoSuchOperator", ["input"], ["logits"])
        ends = [helper.make_tensor_value_info(name, 1, None) for name in ("input", "logits")]
        graph = helper.make_graph([node], "g", ends[:1], ends[1:])
        onnx.save(helper.make_model(graph, ir_version=8), result)
        return {"seconds": 1.0, "why": ""}

    monkeypatch.setattr(check, "convert", convert)
    facts = check.check("fashion_mlp", "fp16", check.Place("cuda", CPU, tmp_path, 0.02))
    assert facts["why"].startswith("does not run: ")


def test_table_dashes_what_is_not_known():
    text = table({("a", "bf16"): {"why": "exit 2: no"}})
    assert "| a | bf16 | – | – | – | – | – | – | – | no | exit 2: no |" in text
