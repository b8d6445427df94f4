"""The comparison of weights of few bits: perplexity, targets and tables."""

import math
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tools import models
from tools.bench import pages
from tools.bench.quantization import judge, session, tasks
from tools.bench.quantization.task import Example, Prediction
from tools.bench.quantization.tasks import language
from tools.bench.weights import contestants, peer, tables, targets
from tools.train import text


def test_nats_are_the_negative_log_likelihood():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]], np.float32)) + 7  # any shift is the same
    found = language.nats(logits, np.array([[1, 1]]))
    assert found == pytest.approx([-math.log(0.25), -math.log(0.8)], rel=1e-5)
    assert language.nats(1e4 * logits, np.array([[1, 1]]))[1] == 0  # no overflow


def test_perplexity_of_a_uniform_guess_is_the_number_of_characters():
    task = language.task("chargpt")
    examples = [Example({}, np.zeros((rows, 4), np.int64)) for rows in (2, 1)]
    guesses = [Prediction(np.zeros((rows, 4, 66), np.float32), np.zeros(4 * rows)) for rows in (2, 1)]
    assert task.score(guesses, examples) == pytest.approx(66)
    assert task.lower_is_better


def test_labels_are_the_characters_that_follow(monkeypatch):
    monkeypatch.setattr(text, "tokens", lambda split: np.arange(512 * 129))
    examples = language.task("chargpt").examples()
    assert sum(len(example.labels) for example in examples) == 512
    assert all((example.feeds["tokens"] + 1 == example.labels).all() for example in examples)
    assert examples[0].feeds["tokens"].shape == (language.BATCH, language.LENGTH)


def test_every_task_has_a_recipe():
    assert set(tasks.LANGUAGE) <= set(models.recipes())


@pytest.mark.parametrize(
    ("name", "bits", "precision"),
    [("graphopt int4", 4, "int4-weights"), ("graphopt int8", 8, "int8-weights"), ("ORT HQQ int8", 8, "8")],
)
def test_bits_and_commands_agree(tmp_path, name, bits, precision):
    assert contestants.bits(name) == bits
    line = contestants.command(name, tmp_path, tmp_path, tmp_path, "peers")
    assert precision in line and str(contestants.BLOCK) in line
    assert line[0] == ("peers" if name in contestants.PEERS else sys.executable)


def test_data_is_only_given_to_those_that_are_to_calibrate(tmp_path):
    lines = {name: contestants.command(name, tmp_path, tmp_path, tmp_path, "") for name in contestants.OURS}
    assert "--data" in lines["graphopt int4"] and "--data" not in lines["graphopt int4 only, no data"]


def test_peers_know_every_setting_and_nodes_get_names():
    assert {setting for setting, _ in contestants.PEERS.values()} == set(peer.SETTINGS)
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"], name="kept")]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert [node.name for node in peer.named(model).graph.node] == ["MatMul_0", "kept"]
    assert model.graph.node[0].name == ""


@pytest.mark.parametrize("setting", ["default", "rtn", "kquant"])
def test_peers_put_a_product_on_four_bits(tmp_path, setting, monkeypatch):
    weight = numpy_helper.from_array(np.random.default_rng(0).random((64, 32), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 64), ("y", 32))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "m.onnx",
    )
    arguments = [str(tmp_path / "m.onnx"), str(tmp_path), str(tmp_path / "r.onnx"), setting, "4", "32"]
    monkeypatch.setattr(sys, "argv", ["peer", *arguments])
    peer.main()
    (node,) = onnx.load(tmp_path / "r.onnx").graph.node
    facts = {attribute.name: attribute.i for attribute in node.attribute}
    assert (node.op_type, facts["bits"], facts["block_size"]) == ("MatMulNBits", 4, 32)


def test_judge_without_counted_arithmetic(tmp_path, monkeypatch):
    ends = [
        helper.make_tensor_value_info("tokens", 7, ["n", "t"]),
        helper.make_tensor_value_info("y", 1, None),
    ]
    table = numpy_helper.from_array(np.eye(66, dtype=np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "tokens"], ["y"])], "g", ends[:1], ends[1:], [table]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m"
    )
    monkeypatch.setattr(text, "tokens", lambda split: np.arange(512 * 129) % 66)
    monkeypatch.setattr(language.Language, "model", lambda self: tmp_path / "m")
    request = {
        "task": "chargpt",
        "model": str(tmp_path / "m"),
        "samples": "none",
        "models": {"same": str(tmp_path / "m")},
    }
    facts = judge.judge(request | {"seconds": 0.02, "macs": False})
    assert facts["same"]["metric"] == facts["fp32"]["metric"] > 60
    assert "integer_macs" not in facts["same"] and set(facts["same"]["speed"]) == {
        "batch 1",
        "two characters",
    }
    assert judge.prepare({"prepare": "chargpt", "samples": str(tmp_path / "s")})["lower_is_better"]


def _entry(metric=3.3, agreement=98.0, ratio=1.5, verdict="faster"):
    return {
        "metric": metric,
        "agreement": agreement,
        "sqnr": 30.0,
        "speed": {"batch 1": {"ratio": ratio, "verdict": verdict}},
        "bytes": 2e6,
        "seconds": 1.0,
        "peak_bytes": 1e8,
        "why": "",
    }


def _facts(lower=True, **entries):
    names = {
        "ours": "graphopt int4 only",
        "mixed": "graphopt int4",
        "hqq": "ORT HQQ int4",
        "rtn": "ORT RTN int4",
        "eight": "ORT HQQ int8",
    }
    found = {"fp32": {"metric": 3.0}, **{names[key]: entry for key, entry in entries.items()}}
    about = {"metric": "perplexity", "agreement_is": "equal, %", "calibration": 4, "lower_is_better": lower}
    return {**about, "contestants": found}


@pytest.mark.parametrize(("metric", "word"), [(3.06, "reached"), (3.07, "missed")])
def test_loss_is_at_most_two_thirds_of_the_best_peers_of_the_same_bits(metric, word):
    facts = _facts(ours=_entry(metric), hqq=_entry(3.1), rtn=_entry(3.2), eight=_entry(3.001))
    text = targets.text({"gpt": facts})
    assert f"the best peer (ORT HQQ int4) 0.1000 at 2.00 MB: {word}; 1.50× at batch 1 (faster)" in text


def test_a_larger_file_reaches_nothing():
    facts = _facts(ours=_entry(3.0) | {"bytes": 9e6}, hqq=_entry(3.1))
    assert "not compared, the file is larger" in targets.text({"gpt": facts})


def test_results_that_mix_bits_are_not_compared():
    assert targets.text({"gpt": _facts(mixed=_entry(3.0), hqq=_entry(3.1))}) == ""


def test_where_a_high_metric_is_good_the_agreement_counts():
    facts = _facts(lower=False, ours=_entry(agreement=99.5), rtn=_entry(agreement=99.0))
    assert "loses 0.5000 at 2.00 MB, the best peer (ORT RTN int4) 1.0000 at 2.00 MB: reached" in targets.text(
        {"minilm": facts}
    )


def test_contestants_that_did_not_run_say_nothing():
    assert targets.text({"gpt": _facts(ours={"why": "exit 2", "seconds": 1.0, "peak_bytes": 1})}) == ""
    assert targets.rivals("graphopt int4 only", _facts(hqq={"why": "no"})) == []


def test_table_has_size_and_speed():
    text = tables.page({"gpt": _facts(ours=_entry(3.05), rtn={"why": "exit 1", "bytes": 0, "seconds": 2.0})})
    assert "| gpt | fp32 | 3.0000 | – | – | 1 | – | – | – |  |" in text
    assert "| gpt | graphopt int4 only | 3.0500 | 98.00 | 30.0 | 1.50 | 2.00 | 1.0 | 100 |  |" in text
    assert "| gpt | ORT RTN int4 | – | – | – | – | – | 2.0 | – | exit 1 |" in text


def test_contestants_of_earlier_runs_are_kept():
    before, after = _facts(rtn=_entry(), ours=_entry(1)), _facts(ours=_entry(2))
    merged = session.updated(before, after)["contestants"]
    assert merged["graphopt int4 only"]["metric"] == 2 and "ORT RTN int4" in merged


def test_documentation_has_the_markers():
    assert pages.replaced(pages.DOCS.read_text(), "weights", "new text").count("new text") == 1
