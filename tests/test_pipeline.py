"""The loop that runs passes: rounds, the journal's decisions, observers, bare rules."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import GraphoptError
from graphopt.journal import Journal, Refusal, Rewrite
from graphopt.model import Model
from graphopt.observers import FingerprintCheck, dump, print_after
from graphopt.pipeline import Pass, Pipeline, Run
from graphopt.rewrite import any_, const, op
from graphopt.target import CPU


def chain(*ops: str) -> Model:
    """x → each of the unary operators → y, the intermediates called after their place."""
    names = ["x", *(f"v{i}" for i in range(1, len(ops))), "y"]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]], name=f"{op}_{i}") for i, op in enumerate(ops)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:])
    return Model.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def ops_of(model: Model) -> list[str]:
    return [node.op_type for node in model.ir.graph]


@graphopt.rule(op("Neg", op("Neg", any_("x"))))
def double_neg(match):
    """−(−x) = x."""
    return match["x"]


@graphopt.rule(op("Abs", op("Abs", any_("x"), name="inner")))
def double_abs(match):
    """||x|| = |x|."""
    return match["inner"]


def run_with(**fields) -> Run:
    return Run(CPU, None, **fields)


def test_a_rule_is_a_pass_called_like_its_function():
    assert str(Pipeline([double_neg, double_abs])) == "double-neg,double-abs"


def test_rounds_go_on_until_nothing_changes():
    model = chain("Relu", "Neg", "Neg", "Neg", "Neg", "Exp")
    run = run_with()
    pipeline = Pipeline([double_neg])
    assert pipeline(model, run)
    assert ops_of(model) == ["Relu", "Exp"]
    assert not pipeline(model, run_with())
    assert run.journal.passes == {"double-neg": 2}
    assert set(run.journal.seconds) == {"double-neg"}


def test_a_pass_that_never_settles_is_stopped_and_noted():
    @dataclass(frozen=True)
    class Restless(Pass):
        name = "restless"
        calls: list[int] = field(default_factory=list)

        def apply(self, model, run):
            self.calls.append(1)
            return True

    run, step = run_with(), Restless()
    Pipeline([step])(chain("Relu"), run)
    assert len(step.calls) == Pipeline.max_rounds
    assert any("still changed" in note for note in run.journal.notes)


@pytest.mark.parametrize("limit", range(4))
def test_a_limit_allows_only_the_first_rewrites(limit):
    model = chain("Neg", "Neg", "Exp", "Neg", "Neg", "Exp", "Neg", "Neg", "Exp")
    run = run_with(journal=Journal(limit=limit))
    Pipeline([double_neg])(model, run)
    assert len(run.journal.rewrites) == limit
    assert ops_of(model).count("Neg") == 6 - 2 * limit


def test_left_out_rewrites_stay_out_and_others_come():
    left_out = frozenset({Rewrite("double-neg", "v2")})
    model = chain("Neg", "Neg", "Exp", "Neg", "Neg", "Exp")
    Pipeline([double_neg])(model, run_with(journal=Journal(left_out=left_out)))
    assert ops_of(model) == ["Neg", "Neg", "Exp", "Exp"]


def test_a_rule_can_be_left_out_altogether():
    model = chain("Neg", "Neg", "Abs", "Abs")
    Pipeline([double_neg, double_abs])(model, run_with(journal=Journal(without=frozenset({"double-neg"}))))
    assert ops_of(model) == ["Neg", "Neg", "Abs"]


def test_replay_allows_only_the_recorded_rewrites():
    only = frozenset({Rewrite("double-neg", "v5")})
    model = chain("Neg", "Neg", "Exp", "Neg", "Neg", "Exp")
    Pipeline([double_neg])(model, run_with(journal=Journal(only=only)))
    assert ops_of(model) == ["Neg", "Neg", "Exp", "Exp"]


def test_a_refusal_is_recorded_once_with_its_reason():
    @graphopt.rule(op("Relu", any_("x")))
    def picky(match):
        match.require(False, "it is a Monday")

    run = run_with()
    Pipeline([picky, double_neg])(chain("Relu", "Neg", "Neg", "Exp"), run)
    assert list(run.journal.refusals) == [Refusal("picky", "Relu 'Relu_0'", "it is a Monday")]


def test_kept_nodes_are_refused_by_name_and_by_operator():
    for keep in ("Neg", "Neg_1"):
        model = chain("Relu", "Neg", "Neg", "Exp")
        run = run_with(keep=frozenset({keep}))
        Pipeline([double_neg])(model, run)
        assert ops_of(model) == ["Relu", "Neg", "Neg", "Exp"]
        assert "--keep" in next(iter(run.journal.refusals)).reason


def test_observers_see_every_step():
    seen = []

    def observe(step, model, run, changed):
        seen.append((step.name, changed))

    pipeline = Pipeline([double_neg, double_abs], [observe])
    pipeline(chain("Relu", "Neg", "Neg", "Exp"), run_with())
    assert seen == [("double-neg", True), ("double-abs", False), ("double-neg", False), ("double-abs", False)]


def test_print_after_writes_text_of_the_chosen_pass():
    written: list[str] = []
    pipeline = Pipeline([double_neg, double_abs], [print_after("double-neg", written.append)])
    pipeline(chain("Relu", "Neg", "Neg", "Exp"), run_with())
    assert len(written) == 2
    assert "; after double-neg (changed)" in written[0]
    assert "Relu" in written[0]
    assert "Neg" not in written[0].split("\n", 1)[1]


def test_dump_saves_numbered_models_that_load(tmp_path):
    pipeline = Pipeline([double_abs, double_neg], [dump(tmp_path / "steps")])
    pipeline(chain("Relu", "Neg", "Neg", "Exp"), run_with())
    names = sorted(path.name for path in (tmp_path / "steps").iterdir())
    assert names == ["002-double-neg.onnx", "002-double-neg.txt"]
    onnx.checker.check_model(onnx.load(tmp_path / "steps" / names[0]))


@pytest.mark.parametrize("claim", [True, False])
def test_a_pass_that_lies_about_changes_is_a_bug(claim):
    class Liar(Pass):
        name = "liar"

        def apply(self, model, run):
            if not claim:
                model.ir.doc_string = "changed"
            return claim

    model = chain("Relu")
    with pytest.raises(GraphoptError, match="bug in pass 'liar'"):
        Pipeline([Liar()], [FingerprintCheck(model)])(model, run_with())


def ir3_model() -> Model:
    """x · 1 as an IR 3 model, which lists its weight as an input."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "one", "y")]
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Mul", ["n", "one"], ["y"])]
    weight = numpy_helper.from_array(np.float32([1]), "one")
    graph = helper.make_graph(nodes, "g", values[:2], values[2:], [weight])
    return Model.of(helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 8)]))


def test_weights_of_ir3_models_are_constants_and_the_version_stays():
    seen = []

    @graphopt.rule(op("Mul", any_("x"), const("one")))
    def look(match):
        seen.append(match.array("one").tolist())

    model = ir3_model()
    Pipeline([look])(model, run_with())
    assert seen == [[1.0]]
    assert model.ir.ir_version == 3
    assert [value.name for value in model.ir.graph.inputs] == ["x", "one"]


def test_an_ir3_model_that_gains_a_weight_becomes_ir4_and_says_so():
    @graphopt.rule(op("Neg", any_("x")))
    def negate_by_mul(match):
        return match.op("Mul", [match["x"], match.constant(np.float32([-1]), "minus_one")])

    model, run = ir3_model(), run_with()
    Pipeline([negate_by_mul])(model, run)
    assert model.ir.ir_version == 4
    assert [value.name for value in model.ir.graph.inputs] == ["x"]
    assert any("IR version 3 became 4" in note for note in run.journal.notes)


def test_no_rule_leaves_a_kept_node_without_use():
    @graphopt.rule(op("Exp", any_("x")))
    def forget(match):
        return match.constant(np.ones((), np.float32), "one")

    for keep in (frozenset(), frozenset({"Relu"})):
        model = chain("Relu", "Neg", "Exp", "Sin")
        run = run_with(keep=keep)
        Pipeline([forget])(model, run)
        assert ops_of(model) == (["Relu", "Neg", "Exp", "Sin"] if keep else ["Sin"])
    assert "'Relu_0' is to be kept (--keep)" in next(iter(run.journal.refusals)).reason


def test_a_kept_node_may_become_the_value_of_its_consumers():
    model = chain("Relu", "Neg", "Neg", "Exp")
    Pipeline([double_neg])(model, run_with(keep=frozenset({"Relu"})))
    assert ops_of(model) == ["Relu", "Exp"]
