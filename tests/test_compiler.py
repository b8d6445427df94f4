"""optimize(): verify, bisect, measure, revert, replay — with passes that are wrong or slow on purpose."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt
from graphopt import graph as g
from graphopt.errors import ParityError, UsageError
from graphopt.journal import Rewrite
from graphopt.model import Model
from graphopt.pipeline import Pass, Run
from graphopt.proof import measure
from graphopt.rewrite import any_, op
from graphopt.runtime.worker import Worker
from tests.support import compute, parse, serialized

GRAPH = """g (float[n,4] x) => (float[n,4] y) <float[4] w = {1, 2, 3, 4}>
    { a = Neg(x) b = Neg(a) c = Add(b, w) d = Exp(c) e = Neg(d) f = Neg(e) y = Sqrt(f) }"""


@graphopt.rule(op("Neg", op("Neg", any_("x"))))
def double_neg(match):
    """−(−x) = x."""
    return match["x"]


@graphopt.rule(op("Exp", any_("x")))
def wrong_exp(match):
    """Not exp(x), on purpose."""
    return match.op("Abs", [match["x"]])


@dataclass(frozen=True)
class NudgeOneWeight(Pass):
    """Change one element of a weight by far more than rounding."""

    name = "nudge-one-weight"

    def apply(self, model: Model, run: Run) -> bool:
        value = model.ir.graph.initializers["w"]
        if g.array(value)[2] != 3 or not run.journal.admit(self.name, "w"):
            return False
        value.const_value = ir.tensor(np.array([1, 2, 3.0001, 4], np.float32), name="w")
        return True


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(parse(GRAPH), path)
    return path


def optimize(source, output=None, **options) -> graphopt.Result:
    return graphopt.optimize(source, output, **{"measure": False, "threads": 1} | options)


def test_a_correct_rewrite_is_verified_and_written(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    result = optimize(model, tmp_path / "out.onnx", passes=[double_neg])
    assert result.report.evidence == "verified"
    assert result.report.after.ops == {"Add": 1, "Exp": 1, "Sqrt": 1}
    assert model.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]
    x = {"x": np.ones((2, 4), np.float32)}
    np.testing.assert_array_equal(
        compute(onnx.load(tmp_path / "out.onnx"), x)[0], compute(onnx.load(model), x)[0]
    )


def test_the_guilty_rewrite_is_found_left_out_and_named(model: Path) -> None:
    report = graphopt.optimize(model, passes=[double_neg, wrong_exp]).report
    assert [item.rewrite for item in report.left_out] == [Rewrite("wrong-exp", "d")]
    assert "first diverging tensor: d" in report.left_out[0].reason
    assert report.evidence == "verified"
    assert report.rule_counts() == {"double-neg": 2}


def test_a_single_wrong_element_is_caught(model: Path) -> None:
    report = graphopt.optimize(model, passes=[NudgeOneWeight()]).report
    assert [item.rewrite for item in report.left_out] == [Rewrite("nudge-one-weight", "w")]
    assert not report.rewrites


def test_without_verification_the_report_says_so(model: Path) -> None:
    report = graphopt.optimize(model, passes=[wrong_exp], verify=False).report
    assert report.evidence == "not verified"
    assert report.rule_counts() == {"wrong-exp": 1}


def test_strict_writes_nothing_unless_verified(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="strict"):
        optimize(model, tmp_path / "out.onnx", verify=False, strict=True)
    assert not (tmp_path / "out.onnx").exists()


def test_verify_each_names_the_pass(model: Path) -> None:
    with pytest.raises(ParityError, match="'wrong-exp'"):
        optimize(model, passes=[double_neg, wrong_exp], verify_each=True)


def test_bisect_limit_and_keep(model: Path) -> None:
    assert optimize(model, passes=[double_neg], bisect_limit=1).report.rule_counts() == {"double-neg": 1}
    kept = optimize(model, passes=[double_neg], keep=["Neg"]).report
    assert not kept.rewrites
    assert "--keep" in kept.refusals[0].reason


def fake_measure(monkeypatch, is_slow) -> None:
    """Latencies as if the models that ``is_slow`` tells had taken twice the original's."""
    real = measure.compare

    def compare(before: Path, after: Path, sample, **options):
        found = real(before, after, sample, **options | {"budget_s": 0.01, "memory": False})
        return replace(
            found, ratio=0.5 if is_slow(after) else 1.0, verdict="slower" if is_slow(after) else "same"
        )

    monkeypatch.setattr(measure, "compare", compare)


def op_types(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_rule_that_costs_time_is_reverted(model: Path, monkeypatch) -> None:
    @graphopt.rule(op("Sqrt", any_("x")))
    def slow_sqrt(match):
        """√x, as a power."""
        half = match.constant(np.array(0.5, np.float32), "half")
        return match.op("Pow", [match["x"], half])

    fake_measure(monkeypatch, lambda path: "Pow" in op_types(path))
    report = graphopt.optimize(model, passes=[double_neg, slow_sqrt], measure=True).report
    assert {item.rewrite.rule for item in report.left_out} == {"slow-sqrt"}
    assert report.rule_counts() == {"double-neg": 2}
    assert report.comparison.verdict == "same"


def test_if_nothing_pays_the_original_is_kept(model: Path, tmp_path: Path, monkeypatch) -> None:
    fake_measure(monkeypatch, lambda path: path.name != "model.onnx")
    report = graphopt.optimize(model, tmp_path / "out.onnx", passes=[double_neg], measure=True).report
    assert report.kept_original is not None
    assert op_types(tmp_path / "out.onnx") == op_types(model)


def test_replay_repeats_decisions(model: Path, tmp_path: Path) -> None:
    first = optimize(model, tmp_path / "a.onnx", bisect_limit=2)
    first.report.save(tmp_path / "report.json")
    again = optimize(model, tmp_path / "b.onnx", replay=tmp_path / "report.json")
    assert again.report.rewrites == first.report.rewrites
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_report_is_json(model: Path, tmp_path: Path) -> None:
    optimize(model, passes=[double_neg]).report.save(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["evidence"] == "verified"
    assert stored["after"]["nodes"] == 3


def test_a_second_run_changes_nothing(model: Path, tmp_path: Path) -> None:
    optimize(model, tmp_path / "once.onnx")
    assert not optimize(tmp_path / "once.onnx", tmp_path / "twice.onnx").report.rewrites
    assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "twice.onnx").read_bytes()


def test_output_over_input_needs_in_place(model: Path) -> None:
    with pytest.raises(UsageError, match="--in-place"):
        optimize(model, model)
    assert optimize(model, model, in_place=True).report.evidence == "verified"


def test_models_in_memory_are_left_as_they_were() -> None:
    proto = parse(GRAPH)
    before = proto.SerializeToString()
    assert optimize(proto).report.evidence == "verified"
    assert proto.SerializeToString() == before
    held = ir.serde.deserialize_model(proto)
    assert optimize(held, passes=[double_neg]).report.after.nodes == 3
    assert len(held.graph) == 7


def test_ir_3_stays_when_no_initializer_changes_and_becomes_ir_4_when_one_does(tmp_path: Path) -> None:
    proto = parse(GRAPH)
    proto.ir_version = 3
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4]))
    same = optimize(proto, passes=[double_neg])
    assert serialized(same.model).ir_version == 3
    assert [value.name for value in same.model.ir.graph.inputs] == ["x", "w"]
    proto.graph.node.append(onnx.helper.make_node("Abs", ["w"], ["unused"]))
    changed = optimize(proto, passes="fold-constants,eliminate-dead-code")
    proto.graph.node[2].input[1] = "unused"
    changed = optimize(proto, passes="fold-constants,eliminate-dead-code")
    assert serialized(changed.model).ir_version == 4
    assert [value.name for value in changed.model.ir.graph.inputs] == ["x"]
    assert any("IR version 3 became 4" in note for note in changed.report.notes)
    assert changed.report.evidence == "verified"


def test_freezing_is_suggested_with_its_measured_gain_and_done_on_request() -> None:
    proto = parse(
        GRAPH.replace("(float[n,4] x)", "(float[n,4] x, float[4] w = {1, 2, 3, 4})").replace(
            "<float[4] w = {1, 2, 3, 4}>", ""
        )
    )
    asked = optimize(proto, measure=True)
    assert "1 initializers are also inputs" in asked.report.suggestions[0]
    assert "ms →" in asked.report.suggestions[0]
    frozen = optimize(proto, freeze_initializers=True)
    assert [value.name for value in frozen.model.ir.graph.inputs] == ["x"]
    assert frozen.report.evidence == "verified"


def test_a_custom_operator_is_optimized_structurally() -> None:
    proto = parse(GRAPH)
    proto.graph.node[3].domain = "nobody.knows"
    proto.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    report = graphopt.optimize(proto, passes=[double_neg]).report
    assert report.evidence == "structural only"
    assert report.rule_counts() == {"double-neg": 2}


LOWER = [{"precision": "int8-dynamic"}, {"precision": "fp16", "target": "cuda"}, {"store": "fp16"}]


@pytest.mark.parametrize("how", LOWER, ids=lambda how: " ".join(how.values()))
def test_lower_precision_is_not_judged_where_the_original_cannot_run(how):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "nowhere" : 1]>'
        " g (float[n,64] x, float[64,64] w) => (float[n,64] y) { a = MatMul(x, w)  y = nowhere.Foo(a) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    del proto.graph.input[1:]
    report = graphopt.optimize(proto, measure=False, **how).report
    assert report.evidence == "structural only"
    assert any("ONNX Runtime cannot load the original here" in note for note in report.notes)


def test_sizes_that_run_are_looked_for_in_one_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((91, 64), np.float32), "w")
    proto = parse(
        "g (float[n, m] x, float[91, 64] w) => (float[k, 64] y) <int64[2] t = {-1, 91}>"
        " { r = Reshape(x, t) y = MatMul(r, w) }"
    )
    del proto.graph.input[1:]
    proto.graph.initializer.append(weight)
    onnx.save(proto, tmp_path / "m.onnx")
    opened, open_session = [], Worker.open

    def counted(worker: Worker, model: object, *rest: object) -> object:
        opened.append(model)
        return open_session(worker, model, *rest)

    monkeypatch.setattr(Worker, "open", counted)
    report = graphopt.optimize(tmp_path / "m.onnx", store="fp16", measure=False).report
    assert report.accuracy is not None and report.accuracy.achieved
    assert opened.count(tmp_path / "m.onnx") < 10


def wrongly_stated(known: bool) -> onnx.ModelProto:
    """y has three dims, and two are stated; onnx sees it only if the target of the Reshape is known."""
    return parse(
        "g (float[n,4] x) => (float[n,d] y)"
        " <int64[1] zero = {0}, int64[1] one = {1}, int64[1] four = {4}, int64[3] t = {1, -1, 4}> {"
        " n = Shape(x) k = Gather(n, zero) s = Concat<axis=0>(one, k, four)"
        f" y = Reshape(x, {'t' if known else 's'}) }}",
        opset=13,
    )


def test_a_rewrite_that_shows_a_stated_shape_to_be_wrong_is_left_out() -> None:
    proto = wrongly_stated(known=False)
    onnx.checker.check_model(proto, full_check=True)
    result = optimize(proto)
    onnx.checker.check_model(serialized(result.model), full_check=True)
    assert any("onnx infers otherwise than the model states" in one.reason for one in result.report.left_out)


def test_an_original_that_contradicts_itself_is_said_to() -> None:
    report = optimize(wrongly_stated(known=True), passes=[double_neg]).report
    assert not report.left_out
    assert any("onnx infers otherwise than the original itself states" in note for note in report.notes)
