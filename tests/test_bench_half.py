"""The fp16 comparison's own logic: what is valid, shares and Casts, rounding, targets and tables."""

import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.runtime.values import Tensor
from tools import models
from tools.bench import drawn, options, pages
from tools.bench.asking import JudgeError, ask
from tools.bench.conversion import Limits, convert
from tools.bench.half import comparison, contestants, judge, rounding, structure, tables, targets
from tools.bench.material import Material
from tools.bench.quantization import samples
from tools.bench.roster import Roster

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def _two_products(path, types):
    """x · a · b with one Cast wherever the type changes; `types` are those of the two products."""
    nodes, held, value = [], FLOAT, "x"
    for name, kind in zip("ab", types, strict=True):
        if kind != held:
            nodes.append(helper.make_node("Cast", [value], [f"{value}_{name}"], to=kind))
            value, held = f"{value}_{name}", kind
        nodes.append(helper.make_node("MatMul", [value, name], [f"y_{name}"]))
        value = f"y_{name}"
    if held != FLOAT:
        nodes.append(helper.make_node("Cast", [value], ["y"], to=FLOAT))
    else:
        nodes[-1].output[0] = "y"
    weights = [
        numpy_helper.from_array(np.ones(shape, np.float16 if kind == HALF else np.float32), name)
        for name, shape, kind in zip("ab", ([4, 6], [6, 2]), types, strict=True)
    ]
    ends = [helper.make_tensor_value_info(name, FLOAT, ["n", size]) for name, size in (("x", 4), ("y", 2))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("types", "share", "casts"),
    [((FLOAT, FLOAT), 0, 0), ((HALF, FLOAT), 100 * 24 / 36, 2), ((HALF, HALF), 100, 2)],
)
def test_share_is_of_the_multiply_accumulates_that_read_half(tmp_path, types, share, casts):
    path = _two_products(tmp_path / "m.onnx", types)
    assert structure.half_share(path, {"x": [3, 4]}) == pytest.approx(share)
    assert structure.casts(path) == casts
    assert structure.invalid(path) == ""


def test_checker_also_finds_types_that_do_not_fit(tmp_path):
    model = onnx.load(_two_products(tmp_path / "m.onnx", (HALF, FLOAT)))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones((6, 2), np.float16), "b"))
    onnx.save(model, tmp_path / "bad.onnx")
    assert structure.invalid(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    ("expected", "found", "is_sound"),
    [
        ([1, 2], [1, 2.5], True),
        ([1, 2], [1, np.inf], False),
        ([1, np.inf], [1, np.inf], True),
        ([1, np.nan], [1, 0], True),
        ([1, 2], [0, 0], False),
        ([0, 0], [0, 0], True),
        ([1, 2], [1], False),
    ],
)
def test_sound_is_finite_and_not_all_zero_where_the_original_is_not(expected, found, is_sound):
    one, other = (Tensor.of(np.array(values, np.float32)) for values in (expected, found))
    assert judge.sound(one, other) is is_sound
    assert judge.sound([one], [other]) is is_sound


def test_judge_compares_a_result_with_its_original(tmp_path):
    original = _two_products(tmp_path / "m.onnx", (FLOAT, FLOAT))
    result = _two_products(tmp_path / "half.onnx", (HALF, HALF))
    rng = np.random.default_rng(0)
    samples.write([{"x": rng.random((n, 4), np.float32)} for n in (1, 3)], tmp_path / "judged")
    request = {"original": str(original), "judged": str(tmp_path / "judged"), "dims": {"x": [3, 4]}}
    facts = judge.judge(request | {"result": str(result)})
    assert (facts["loads"], facts["finite"], facts["invalid"], facts["casts"], facts["half"]) == (
        True,
        True,
        "",
        2,
        100,
    )
    assert 50 < facts["sqnr"] < 90  # half has 11 bits: about 66 dB
    same = judge.judge(request | {"result": str(original)})
    assert same["sqnr"] == np.inf and same["casts"] == 0


def _half_chain(nodes):
    """A model of half precision between two Casts, and its weights."""
    weights = [
        numpy_helper.from_array(np.array(value, np.float16), name) for name, value in (("k", 1.9), ("h", 0.5))
    ]
    first, last = (
        helper.make_node("Cast", ["x"], ["a"], to=HALF),
        helper.make_node("Cast", ["d"], ["y"], to=1),
    )
    ends = [helper.make_tensor_value_info(name, FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([first, *nodes, last], "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _in_a_branch():
    """a · k · h inside both branches of an If."""
    nodes = [helper.make_node("Mul", ["a", "k"], ["b"]), helper.make_node("Mul", ["b", "h"], ["inner"])]
    ends = [helper.make_tensor_value_info("inner", HALF, [4])]
    branch = helper.make_graph(nodes, "branch", [], ends)
    true = numpy_helper.from_array(np.array(True))
    return [
        helper.make_node("Constant", [], ["is"], value=true),
        helper.make_node("If", ["is"], ["d"], then_branch=branch, else_branch=branch),
    ]


PLAIN = [helper.make_node("Mul", ["a", "k"], ["b"]), helper.make_node("Mul", ["b", "h"], ["d"])]


@pytest.mark.parametrize("nodes", [PLAIN, _in_a_branch()], ids=["plain", "in a branch"])
def test_rounded_model_computes_what_float16_does(tmp_path, nodes):
    onnx.save(_half_chain(nodes), tmp_path / "m.onnx")
    rounding.write_rounded(tmp_path / "m.onnx", tmp_path / "r.onnx")
    x = np.array([0.1, 1000.3, 3e-7, 60000], np.float32)
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (found,) = ort.InferenceSession(str(tmp_path / "r.onnx"), plain).run(None, {"x": x})
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16) * np.float16(1.9) * np.float16(0.5)
    assert np.isinf(expected[3])
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_judge_says_what_does_not_load(tmp_path):
    original = _two_products(tmp_path / "m.onnx", (FLOAT, FLOAT))
    model = onnx.load(original)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "bad.onnx")
    facts = judge.run(original, tmp_path / "bad.onnx", tmp_path)
    assert not facts["loads"] and facts["why"].startswith("does not run: ")


def test_drawn_samples_follow_the_recipe_and_repeat():
    first, again = (list(drawn.feeds("fashion_vit", 2, seed=4)) for _ in range(2))
    assert [one["input"].shape for one in first] == [(1, 1, 28, 28)] * 2
    assert first[0]["input"].dtype == np.float32
    assert all(np.array_equal(a["input"], b["input"]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0]["input"], first[1]["input"])
    (other,) = drawn.feeds("fashion_vit", 1, seed=4, varied=True)
    assert other["input"].shape == (5, 1, 28, 28)


def test_some_of_the_samples_that_judge_have_other_shapes():
    batches = [one["input"].shape[0] for one in Material("fashion_vit").judged(4)]
    assert batches == [1, 1, 5, 5]
    assert len(list(Material("fashion_vit").calibration(3))) == 3


def test_networks_of_drawn_weights_are_settled_and_see_photographs(monkeypatch):
    pytest.importorskip("PIL")

    class Settled:
        def __init__(self, name):
            self.name = name

        def model(self):
            return f"settled {self.name}"

        def stream(self, split, count):
            return iter([f"{split} {i}" for i in range(count)])

    monkeypatch.setattr("tools.bench.quantization.tasks.drawn.Drawn", Settled)
    material = Material("resnet50")
    assert material.model() == "settled resnet50"
    assert list(material.calibration(2)) == ["calibration 0", "calibration 1"]
    assert list(material.judged(2)) == ["test 0", "test 1"]
    assert Material("fashion_mlp").model() == models.path("fashion_mlp")


def test_light_models_as_they_are_do_not_take_part():
    names = options.real_models()
    assert "light_resnet50" not in names and {"resnet50", "minilm", "fashion_cnn"} <= set(names)


def _entry(sqnr=60.0, half=100.0, casts=2, **changes):
    facts = {"seconds": 1.0, "peak_bytes": 5e6, "why": "", "invalid": "", "loads": True, "finite": True}
    return facts | {"sqnr": sqnr, "half": half, "casts": casts, "agreement": 100.0} | changes


def _failed(why="exit 1: no"):
    return {"seconds": 3.0, "peak_bytes": 9e6, "why": why}


def _about(**entries):
    names = {"ours": "graphopt", "theirs": "onnxconverter", "others": "ORT transformers"}
    return {"invalid": "", "contestants": {names[key]: entry for key, entry in entries.items()}}


@pytest.mark.parametrize(
    ("entry", "flaw"),
    [
        (_entry(), ""),
        (_failed(), "fails"),
        (_failed("exit -9: "), "out of time"),
        (_entry(loads=False), "does not load"),
        (_entry(invalid="bad type"), "checker fails"),
        (_entry(finite=False), "NaN, Inf or zeros"),
    ],
)
def test_flaws(entry, flaw):
    assert targets.flaw(entry, _about()) == flaw


def test_result_need_not_pass_a_checker_that_its_original_fails():
    assert targets.flaw(_entry(invalid="bad"), {"invalid": "bad", "contestants": {}}) == ""


def test_sqnr_is_compared_with_valid_results_of_as_much_half():
    ours = _entry(60, half=80)
    assert targets.best_sqnr(_about(ours=ours, theirs=_entry(90, half=10)))
    assert not targets.best_sqnr(_about(ours=ours, theirs=_entry(61, half=79.5)))
    assert targets.best_sqnr(_about(ours=ours, theirs=_entry(61, half=79.5, finite=False)))
    assert not targets.best_sqnr(_about(ours=_failed()))


def test_casts_are_compared_with_valid_results_of_as_much_half():
    assert targets.fewest_casts(_about(ours=_entry(casts=2), theirs=_entry(casts=0, half=0)))
    assert targets.fewest_casts(_about(ours=_entry(casts=2), theirs=_entry(casts=2), others=_failed()))
    assert not targets.fewest_casts(_about(ours=_entry(casts=3), theirs=_entry(casts=2)))


def test_tables_count_and_name_what_failed():
    comparisons = {
        "a": _about(ours=_entry(70), theirs=_entry(10.0, casts=4)),
        "b": _about(ours=_entry(50), theirs=_failed()),
    }
    text = tables.page(comparisons)
    assert "| graphopt | 2 | 2 | 2 | 2 | 2 | 0 | 60.0 | 100.00 | 100.0 | 2.0 | 1.0 | 5 |" in text
    assert "| onnxconverter | 2 | 1 | 1 | 1 | 1 | 1 | 10.0 | 100.00 | 100.0 | 4.0 | 2.0 | 9 |" in text
    assert "| a | 70.0 dB, 100 %, +2 | 10.0 dB, 100 %, +4 |" in text
    assert "| b | 50.0 dB, 100 %, +2 | fails |" in text
    assert "- valid: 2 of 2 models\n" in text


def test_without_graphopt_no_targets_are_told():
    assert targets.text({"a": _about(theirs=_entry())}) == ""


def test_conversion_is_reused_only_for_the_same_sources(tmp_path):
    source, result, runs = tmp_path / "m", tmp_path / "r.onnx", tmp_path / "runs"
    program = f"open({str(runs)!r}, 'a').write('x'); open({str(result)!r}, 'w').write('y')"
    for content, expected in ((b"one", "x"), (b"one", "x"), (b"two", "xx")):
        source.write_bytes(content)
        limits = Limits(60, 10**10)
        facts = convert([sys.executable, "-c", program], [source], result, limits, reuse=True)
        assert facts["why"] == "" and facts["bytes"] == 1 and runs.read_text() == expected


def test_conversion_is_not_reused_without_its_result(tmp_path):
    source, result = tmp_path / "m", tmp_path / "r.onnx"
    source.write_bytes(b"one")
    program = f"open({str(result)!r}, 'w').write('y')"
    for _ in range(2):
        command = [sys.executable, "-c", program]
        assert convert(command, [source], result, Limits(60, 10**10), reuse=True)["why"] == ""
        assert result.exists()
        result.unlink()


def test_what_a_contestant_leaves_in_its_folder_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = f"open('left-behind', 'w'); open({str(tmp_path / 'r.onnx')!r}, 'w').write('y')"
    facts = convert([sys.executable, "-c", program], [], tmp_path / "r.onnx", Limits(60, 10**10))
    assert facts["why"] == "" and not (tmp_path / "left-behind").exists()


def test_paths_that_are_given_are_absolute():
    assert options.interpreter("python3").startswith("/")
    assert options.absolute("folder").is_absolute()


def test_contestant_that_fails_is_recorded_and_others_stay_from_earlier_runs(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no')"]
    roster = Roster(["graphopt"], ["onnxconverter"], lambda *_: command)
    plan = comparison.Plan(["graphopt"], roster, sys.executable, tmp_path, Limits(60, 10**10), False, False)
    facts = comparison.compare("fashion_mlp", plan, {"contestants": {"onnxconverter": _entry()}})
    assert facts["contestants"]["graphopt"]["why"] == "exit 1: no"
    assert list(facts["contestants"]) == ["graphopt", "onnxconverter"]


def test_judge_that_dies_or_hangs_is_an_error(monkeypatch, tmp_path):
    for name, source in (("dying", "raise SystemExit('gone')"), ("hanging", "import time; time.sleep(99)")):
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(JudgeError, match="gone"):
        ask("dying", {})
    with pytest.raises(JudgeError, match="no verdict in 1 s"):
        ask("hanging", {}, limit_s=1)


def test_commands_name_the_interpreter_and_the_type(tmp_path):
    ours = contestants.command("graphopt", tmp_path, tmp_path, tmp_path, "peers")
    theirs = contestants.command("ModelOpt autocast", tmp_path, tmp_path, tmp_path, "peers")
    assert "fp16" in ours and ours[0] == sys.executable
    assert theirs[0] == "peers" and theirs[-1] == "modelopt"


def test_documentation_has_the_markers():
    assert pages.replaced(pages.DOCS.read_text(), "half", "new text").count("new text") == 1


def test_all_real_models_have_shapes():
    assert all(models.recipes()[name].shapes for name in options.real_models())
