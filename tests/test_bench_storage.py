"""The comparison of stored weights: bytes, what the error may be, targets and tables."""

import json
from argparse import Namespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tools.bench import pages, running
from tools.bench.asking import JudgeError
from tools.bench.quantization import samples
from tools.bench.storage import command, judge, oracle, tables

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def _model(path, weight, extra=()):
    """x · w, w a float32 weight or a half one that is widened."""
    ends = [
        helper.make_tensor_value_info(name, FLOAT, ["n", size])
        for name, size in zip("xy", weight.shape, strict=True)
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if weight.dtype == np.float16:
        nodes = [helper.make_node("Cast", ["w16"], ["w"], to=FLOAT), *nodes]
    name = "w16" if weight.dtype == np.float16 else "w"
    graph = helper.make_graph(
        [*extra, *nodes], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, name)]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


WEIGHT = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)


def test_bytes_are_those_of_floats_in_constants_and_branches_too(tmp_path):
    def constant(name, kind):
        value = helper.make_tensor(name, kind, [10], np.zeros(10))
        return helper.make_node("Constant", [], [name], value=value)

    ends = [helper.make_tensor_value_info("inner", FLOAT, [10])]
    branch = helper.make_graph([constant("inner", FLOAT)], "branch", [], ends)
    true = helper.make_node("Constant", [], ["true"], value=helper.make_tensor("t", 9, [], [True]))
    extra = [
        true,
        constant("half", HALF),
        constant("whole", onnx.TensorProto.INT64),
        helper.make_node("If", ["true"], ["unused"], then_branch=branch, else_branch=branch),
    ]
    path = _model(tmp_path / "m.onnx", WEIGHT, extra)
    assert oracle.float_bytes(path) == WEIGHT.nbytes + 2 * 10 + 2 * 4 * 10


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_oracle_rounds_every_weight(tmp_path, half):
    oracle.write_rounded(_model(tmp_path / "m.onnx", WEIGHT), tmp_path / "r.onnx", half)
    (found,) = (numpy_helper.to_array(one) for one in onnx.load(tmp_path / "r.onnx").graph.initializer)
    np.testing.assert_array_equal(found, WEIGHT.astype(oracle.HALVES[half]).astype(np.float32))
    assert (found != WEIGHT).mean() > 0.9


def test_what_leaves_the_range_is_not_rounded():
    values = np.array([1e5, 0.1], np.float32)
    np.testing.assert_array_equal(oracle.rounded(values, oracle.HALVES["fp16"]), values)
    assert oracle.rounded(values, oracle.HALVES["bf16"])[1] != values[1]


def test_judge_measures_bytes_error_and_latency(tmp_path):
    base = _model(tmp_path / "base.onnx", WEIGHT)
    result = _model(tmp_path / "half.onnx", WEIGHT.astype(np.float16))
    rng = np.random.default_rng(1)
    samples.write([{"x": rng.random((2, 64), np.float32)}] * 2, tmp_path / "samples")
    request = {"base": str(base), "samples": str(tmp_path / "samples"), "half": "fp16", "seconds": 0.02}
    facts = judge.judge(request | {"result": str(result)})
    assert (facts["before"], facts["after"]) == (WEIGHT.nbytes, WEIGHT.nbytes // 2)
    assert facts["sqnr"] == pytest.approx(facts["allowed"], abs=0.5)  # its only error is that of rounding
    assert 50 < facts["sqnr"] < 90 and facts["ratio"] > 0
    (tmp_path / "broken.onnx").write_bytes(base.read_bytes().replace(b"MatMul", b"NoMul!"))
    assert judge.judge(request | {"result": str(tmp_path / "broken.onnx")})["why"].startswith("does not run")


def _entry(**changes):
    facts = {"before": 8e6, "after": 4e6, "ratio": 1.0, "noise": 0.01, "verdict": "same", "why": ""}
    return {
        **facts,
        "load_before": 0.01,
        "load_after": 0.012,
        "sqnr": 70.0,
        "allowed": 70.2,
        "seconds": 2.0,
    } | changes


def test_table_and_targets():
    comparisons = {
        "a": {"fp16": _entry(), "bf16": _entry(sqnr=40.0, allowed=52.0)},
        "b": {"fp16": _entry(after=5e6, verdict="slower"), "bf16": {"why": "exit 2: no", "seconds": 1.0}},
        "c": {"fp16": _entry(before=0, after=0, sqnr=None, allowed=None)},
    }
    text = tables.page(comparisons)
    assert "| a | fp16 | 8.00 → 4.00 | 50.0 | 1.00 ± 0.01 | 0.010 → 0.012 | 70.0 | 70.2 | 2.0 |  |" in text
    assert "| b | bf16 | – | – | – | – | – | – | 1.0 | exit 2: no |" in text
    assert "- at most 51 % of the bytes: 3 of 4 results; not b fp16" in text
    assert "- as fast within noise: 3 of 4 results; not b fp16" in text
    assert "- error within rounding of the weights: 3 of 4 results; not a bf16" in text


def test_result_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "optimized", lambda *_: {"why": "exit 2: no such option", "seconds": 0.1})
    facts = command.of_model("fashion_mlp", tmp_path, 0.02)
    assert {half: one["why"] for half, one in facts.items()} == dict.fromkeys(
        ("fp16", "bf16"), "exit 2: no such option"
    )


def test_documentation_has_the_markers():
    assert pages.replaced(pages.DOCS.read_text(), "storage", "new text").count("new text") == 1


def test_a_run_keeps_what_it_does_not_repeat_and_what_failed_now(tmp_path):
    def compare(name, known):
        if name == "bad":
            raise JudgeError("it does not run")
        return {"runs": known.get("runs", 0) + 1}

    chosen = Namespace(json=tmp_path / "found.json", write_docs=False)
    assert running.each(["b", "a"], chosen, compare) == {"b": {"runs": 1}, "a": {"runs": 1}}
    found = running.each(["bad", "a"], chosen, compare)
    assert found == {"b": {"runs": 1}, "a": {"runs": 2}} == json.loads(chosen.json.read_text())
    assert list(running.ordered(found, ["a", "b", "c"])) == ["a", "b"]
