"""The int8 comparison's own logic: scores, noise, counted arithmetic, samples, targets and tables."""

import json
import math
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tools.bench import pages
from tools.bench.quantization import (
    comparison,
    judge,
    macs,
    quality,
    samples,
    scoring,
    settle,
    stages,
    tables,
    targets,
    tasks,
)
from tools.bench.quantization.task import Example, Prediction, Task, equal
from tools.bench.quantization.tasks import files, speech
from tools.bench.roster import Roster


class Parity(Task):
    """Tells odd from even numbers."""

    name, kind, metric = "parity", "numbers", "right, %"

    def calibration(self):
        return [{"x": np.array([[2.0, 0.0]], np.float32)}]

    def examples(self):
        return [
            Example({"x": np.array([[1, 0], [0, 1]], np.float32)}, np.array([0, 1])),
            Example({"x": np.array([[0, 3]], np.float32)}, np.array([0])),
        ]


def _identity(feeds):
    return [feeds["x"]]


def test_default_task_takes_the_largest_output_as_the_answer():
    task = Parity()
    found = [task.predict(_identity, example) for example in task.examples()]
    assert [one.answers.tolist() for one in found] == [[0, 1], [1]]
    assert task.score(found, task.examples()) == pytest.approx(200 / 3)
    assert task.agreement(found, found) == 100


def test_batches_of_different_size_weigh_by_their_examples():
    assert equal([np.array([1, 1, 1]), np.array([0])], [np.array([1, 1, 1]), np.array([1])]) == 75


def test_sqnr_of_known_noise():
    reference = [Prediction(np.array([[3.0, 4.0]]), np.array([1]))]
    found = [Prediction(np.array([[3.0, 4.5]]), np.array([1]))]
    assert quality.sqnr(reference, found) == pytest.approx(10 * math.log10(25 / 0.25))
    assert quality.sqnr(reference, reference) == math.inf


def test_tasks_without_float_outputs_have_no_sqnr():
    one = [Prediction(None, np.array([1]))]
    assert quality.sqnr(one, one) is None


def test_samples_of_different_shapes_come_back_in_order(tmp_path):
    written = [{"x": np.zeros((1, width), np.float32), "n": np.array(width)} for width in (3, 1, 2)]
    samples.write([{"x": np.ones(9)}] * 5, tmp_path)  # of an earlier run
    samples.write(written, tmp_path)
    back = list(samples.read(tmp_path))
    assert [one["x"].shape for one in back] == [(1, 3), (1, 1), (1, 2)]
    assert [int(one["n"]) for one in back] == [3, 1, 2]
    assert back[0]["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("indices", "text"),
    [([1, 1, 2], "ab"), ([1, 0, 1], "aa"), ([0, 0], ""), ([0, 2, 2, 0, 3, 3, 3], "bc"), ([], "")],
)
def test_repetitions_are_merged_unless_a_blank_parts_them(indices, text):
    assert scoring.decode(np.array(indices, np.int64), ["", "a", "b", "c"]) == text


def test_rank_correlation_ignores_scale_and_shares_ranks():
    values = np.array([3.0, 1.0, 2.0, 2.0])
    assert scoring.ranks(values).tolist() == [4, 1, 2.5, 2.5]
    assert scoring.spearman(values, np.exp(values)) == pytest.approx(1)
    assert scoring.spearman(values, -values) == pytest.approx(-1)


def test_intersection_over_union():
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert scoring.intersection_over_union(a, b) == pytest.approx(100 / 3)
    assert scoring.intersection_over_union(a & ~a, b & ~b) == 100


def test_features_of_a_file_are_its_ends_without_white_space(tmp_path):
    (tmp_path / "short").write_bytes(b"\n\n abc \n")
    short = files.features(tmp_path / "short")
    assert short.dtype == np.int32 and short.shape == (2048,)
    assert bytes(short[:4].astype(np.uint8)) == b"abc " and short[6] == files.PADDING
    assert bytes(short[-3:].astype(np.uint8)) == b"abc" and short[-7] == files.PADDING
    (tmp_path / "long").write_bytes(bytes(range(256)) * 64)
    long = files.features(tmp_path / "long")
    assert long[:3].tolist() == [0, 1, 2] and long[-1] == 255


def test_state_of_a_frame_is_fed_to_the_next():
    seen = []

    def run(feeds):
        seen.append(float(feeds["state"][0, 0, 0]))
        return [np.array([[0.6 if len(seen) > 1 else 0.4]]), feeds["state"] + 1]

    sound = np.zeros(speech.CONTEXT + 3 * speech.FRAME, np.float32)
    prediction = speech.task("silero_vad").predict(run, Example({"sound": sound}))
    assert seen == [0, 1, 2]
    assert prediction.answers.tolist() == [False, True, True]


def _event(kind, inputs, output, name="n_kernel_time"):
    shapes = [{"float": list(shape)} for shape in inputs]
    return {
        "name": name,
        "args": {"op_name": kind, "input_type_shape": shapes, "output_type_shape": [{"float": output}]},
    }


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "expected"),
    [
        ("Conv", [[1, 3, 8, 8], [16, 3, 3, 3]], [1, 16, 6, 6], 16 * 36 * 27),
        ("QLinearConv", [[1, 4, 8, 8], [], [], [4, 1, 3, 3], [], []], [1, 4, 6, 6], 4 * 36 * 9),
        ("QGemm", [[2, 5], [], [], [5, 7]], [2, 7], 70),
        ("MatMulIntegerToFloat", [[2, 3, 5], [5, 7]], [2, 3, 7], 210),
        ("LSTM", [[10, 1, 4], [1, 12, 4], [1, 12, 3]], [10, 1, 1, 3], 10 * (48 + 36)),
    ],
)
def test_multiply_accumulates(kind, inputs, output, expected):
    assert macs.count([_event(kind, inputs, output)]) == {kind: expected}


def test_only_kernels_count_and_their_kinds_add_up():
    event = _event("MatMul", [[2, 3], [3, 4]], [2, 4])
    fence = _event("MatMul", [[2, 3], [3, 4]], [2, 4], name="n_fence_before")
    assert macs.count([event, fence, event, {"name": "session"}]) == {"MatMul": 48}


def test_share_is_of_what_the_original_computes():
    assert macs.integer_share({"QGemm": 30, "Gemm": 70}, {"Gemm": 60}) == 50
    assert macs.integer_share({}, {}) == 0


def test_profile_of_a_real_run_counts_what_the_graph_says(tmp_path):
    pytest.importorskip("onnxruntime")
    weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    shape = [helper.make_tensor_value_info(name, 1, [2, n]) for name, n in (("x", 3), ("y", 4))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", shape[:1], shape[1:], [weight]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m"
    )
    np.savez(tmp_path / "s.npz", x=np.zeros((2, 3), np.float32))
    for optimized in (True, False):
        assert macs.count(macs.profile(str(tmp_path / "m"), tmp_path / "s.npz", optimized)) == {"MatMul": 24}


def _doubling(path):
    ends = [helper.make_tensor_value_info(name, 1, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_judge_rates_what_runs_and_says_what_does_not(tmp_path, monkeypatch):
    _doubling(tmp_path / "m.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    task = Parity()
    monkeypatch.setattr(Parity, "model", lambda self: tmp_path / "m.onnx")
    monkeypatch.setattr(tasks, "load", lambda name: task)
    about = judge.prepare({"prepare": "parity", "samples": str(tmp_path / "samples")})
    assert about["calibration"] == 1 and about["metric"] == "right, %"
    models = {"same": str(tmp_path / "m.onnx"), "broken": str(tmp_path / "broken.onnx")}
    request = {
        "task": "parity",
        "model": about["model"],
        "samples": str(tmp_path / "samples"),
        "models": models,
    }
    request |= {"seconds": 0.02, "macs": True}
    facts = judge.judge(request)
    assert facts["fp32"] == {"metric": pytest.approx(200 / 3)}
    assert facts["same"]["metric"] == facts["fp32"]["metric"]
    assert (facts["same"]["agreement"], facts["same"]["sqnr"], facts["same"]["integer_macs"]) == (
        100,
        math.inf,
        0,
    )
    assert list(facts["same"]["speed"]) == ["batch 1"] and facts["same"]["speed"]["batch 1"]["ratio"] > 0
    assert facts["broken"]["why"].startswith("does not run: ")


def test_settled_normalizations_normalize():
    rng = np.random.default_rng(0)
    names = ["scale", "bias", "mean", "var"]
    weights = [numpy_helper.from_array(np.ones(2, np.float32), name) for name in names]
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["scaled"]),
        helper.make_node("BatchNormalization", ["scaled", *names], ["y"]),
    ]
    factor = numpy_helper.from_array(np.array(7, np.float32), "factor")
    shape = [1, 2, 4, 4]
    ends = [helper.make_tensor_value_info(name, 1, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [factor, *weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = [{"x": rng.normal(3, 2, shape).astype(np.float32)} for _ in range(4)]
    settle.settle(model, feeds)
    outputs = np.concatenate(settle.values(model, "y", feeds))
    assert outputs.mean((0, 2, 3)) == pytest.approx([1, 1], abs=1e-4)  # the bias
    assert outputs.std((0, 2, 3)) == pytest.approx([1, 1], abs=1e-3)


@pytest.mark.parametrize(("last", "kept"), [("Softmax", ["Relu"]), ("Neg", ["Relu", "Neg"])])
def test_softmax_at_the_end_is_left_out(last, kept):
    ends = [helper.make_tensor_value_info(name, 1, [1, 3]) for name in ("x", "y")]
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node(last, ["r"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    settle.without_softmax(model)
    assert [node.op_type for node in model.graph.node] == kept
    assert model.graph.output[0].name == ("r" if last == "Softmax" else "y")


def _entry(metric, speed, share=100, *, agreement=99.0, sqnr=20.0, verdict="faster"):
    return {
        "metric": metric,
        "agreement": agreement,
        "sqnr": sqnr,
        "integer_macs": share,
        "speed": {"batch 1": {"ratio": speed, "verdict": verdict}},
        "seconds": 1.0,
        "peak_bytes": 1e6,
        "why": "",
    }


def _entries(ours, **others):
    names = {"default": "ORT default", "minmax": "ORT U8S8 min-max"}
    return {"fp32": {"metric": 90.0}, "graphopt": ours, **{names[key]: one for key, one in others.items()}}


@pytest.mark.parametrize(
    ("ours", "theirs", "reached"),
    [(89.6, 89.0, "yes"), (89.4, 89.0, "no"), (89.95, 89.95, "yes"), (90.5, 91.0, "yes"), (89.8, 90.0, "no")],
)
def test_drop_is_at_most_half_the_best_peers_or_near(ours, theirs, reached):
    entries = _entries(_entry(ours, 1), default=_entry(theirs, 1), minmax=_entry(theirs - 5, 1))
    assert targets.metric(entries).split()[0] == reached


def test_fidelity_is_compared_with_peers_that_compute_as_much_in_integers():
    lazy = _entry(90, 1, share=10, agreement=100, sqnr=60)
    entries = _entries(_entry(90, 1, share=80), default=lazy, minmax=_entry(90, 1, agreement=98, sqnr=25))
    assert targets.fidelity(entries) == "yes, no"


def test_speed_is_compared_with_the_fastest_of_equal_accuracy():
    entries = _entries(_entry(89.9, 1.5), default=_entry(80, 9), minmax=_entry(89.9, 1.2))
    assert targets.rivals(entries)["batch 1"] == (pytest.approx(1.25), "ORT U8S8 min-max")
    entries["ORT U8S8 min-max"]["speed"]["batch 1"]["ratio"] = 0.5
    assert targets.rivals(entries)["batch 1"] == (1.5, "fp32")


def test_targets_list_only_tasks_that_graphopt_finished():
    failed = {"seconds": 1, "why": "exit 2", "peak_bytes": 1}
    text = targets.table({"a": {"contestants": _entries(_entry(90, 2), default=_entry(89, 4))},
                          "b": {"contestants": _entries(failed)}})  # fmt: skip
    assert "| a |" in text and "| b |" not in text
    assert "2.00×" in text.splitlines()[-1]


def test_table_names_what_failed_and_dashes_what_is_unknown():
    failed = {"seconds": 2.0, "peak_bytes": 5e6, "why": "exit 1: no"}
    facts = {
        "kind": "numbers",
        "metric": "right, %",
        "agreement_is": "equal answers, %",
        "calibration": 3,
        "contestants": _entries(_entry(89, 1.234), default=failed),
    }
    text = tables.all_kinds({"parity": facts})
    assert "| parity | graphopt | 89.00 | 99.00 | 20.0 | 1.23 | 100 | 1.0 | 1 |  |" in text
    assert "| parity | ORT default | – | – | – | – | – | 2.0 | 5 | exit 1: no |" in text
    assert (
        "- parity: metric: right, %; agreement: equal answers, %; 3 calibration samples; speed at batch 1"
        in text
    )


def test_page_keeps_what_is_outside_the_markers():
    begin, end = "<!-- part: begin (python -m tools.bench part -w) -->", "<!-- part: end -->"
    once = pages.replaced(f"before\n{begin}\nold\n{end}\nafter\n", "part", "new")
    assert once == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    assert pages.replaced(once, "part", "new") == once
    with pytest.raises(ValueError, match="markers"):
        pages.replaced("no markers", "part", "new")


@pytest.mark.parametrize("part", ["quantization", "calibration"])
def test_documentation_has_the_markers(part):
    assert pages.replaced(pages.DOCS.read_text(), part, "new text").count("new text") == 1


def _plan(tmp_path, source, reuse=False):
    name = "ORT default"
    roster = Roster([], [name], lambda *_: [sys.executable, "-c", source])
    return comparison.Plan([name], roster, sys.executable, tmp_path, 60, 10**10, 0.1, reuse)


def test_failed_contestant_is_recorded_with_its_last_line(tmp_path):
    source = "print('first'); raise SystemExit('no such thing')"
    (tmp_path / "samples").mkdir()
    (tmp_path / "m.onnx").write_bytes(b"m")
    facts = comparison.quantize(
        "ORT default", tmp_path / "m.onnx", tmp_path / "samples", tmp_path, _plan(tmp_path, source)
    )
    assert facts["why"] == "exit 1: no such thing"


def test_result_is_reused_only_for_the_same_model_and_samples(tmp_path):
    runs = tmp_path / "runs"
    source = (
        f"open({str(runs)!r}, 'a').write('x'); open({str(tmp_path / 'ORT_default.onnx')!r}, 'w').write('y')"
    )
    folder = tmp_path / "samples"
    folder.mkdir()
    model = tmp_path / "m.onnx"
    model.write_bytes(b"one")
    for _ in range(2):
        facts = comparison.quantize(
            "ORT default", model, folder, tmp_path, _plan(tmp_path, source, reuse=True)
        )
        assert facts["why"] == "" and runs.read_text() == "x"
    model.write_bytes(b"two")
    comparison.quantize("ORT default", model, folder, tmp_path, _plan(tmp_path, source, reuse=True))
    assert runs.read_text() == "xx"
    assert json.loads((tmp_path / "ORT_default.json").read_text())["bytes"] == 1


def test_every_task_has_a_recipe_and_a_module():
    from tools import models

    assert set(tasks.MODULES) <= set(models.recipes())


def test_shapes_of_fashion_samples_fit_the_committed_models():
    task = tasks.load("fashion_vit")
    assert task.model().exists()
    assert {name: feeds["input"].shape for name, feeds in task.workloads().items()} == {
        "batch 1": (1, 1, 28, 28),
        "batch 32": (32, 1, 28, 28),
    }


def test_stopwatch_takes_the_first_stretch_of_its_stage(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(clock))
    watch = stages.Stopwatch("calibrating")
    for stage in ["verifying", "calibrating", "calibrating", "fitting", "calibrating", "judging"]:
        watch(stage, 1, 2)
    assert watch.seconds == 2.5
