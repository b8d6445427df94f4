"""The rewriting engine: what a pattern matches, what it must not touch, and that refusals say why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.journal import Journal, Rewrite
from graphopt.pipeline import Run
from graphopt.rewrite import Match, Rule, RulePass, any_, const, maybe, op, rule
from graphopt.runtime.worker import Worker
from tests.support import assert_same, ops, parse, run_passes, serialized


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


class NegOfExp(Rule):
    """Neg(Exp(x)) = Abs(x), a rule that is wrong on purpose: tests see at once where it applied."""

    pattern = op("Neg", op("Exp", any_("x"), name="inner"), node="outer")

    def rewrite(self, match: Match) -> ir.Value:
        return match.op("Abs", [match["x"]])


@dataclass(frozen=True)
class Fuse(RulePass):
    name: ClassVar[str] = "fuse"
    rules: ClassVar[tuple[type[Rule], ...]] = (NegOfExp,)


@rule(op("Mul", any_("x"), const("one"), commutative=True))
def times_one(match: Match) -> ir.Value | None:
    """x · 1 = x."""
    match.require((match.array("one") == 1).all(), "the factor is not 1")
    return match["x"]


@dataclass(frozen=True)
class DropOnes(RulePass):
    name: ClassVar[str] = "drop-ones"
    rules: ClassVar[tuple[type[Rule], ...]] = (times_one,)


def after(
    worker: Worker, text: str, step: RulePass | None = None, journal: Journal | None = None
) -> tuple[Counter[str], Run]:
    model, run = run_passes(parse(text), step or Fuse(), worker=worker, journal=journal)
    return ops(model), run


def reasons(run: Run) -> str:
    return " / ".join(refusal.reason for refusal in run.journal.refusals)


def test_names_come_from_the_class() -> None:
    assert NegOfExp.name == "neg-of-exp"
    assert times_one.name == "times-one"
    assert times_one.__doc__ == "x · 1 = x."


def test_the_replacement_takes_name_and_place(worker: Worker) -> None:
    proto = parse("g (float[n] x) => (float[n] y) { h = Exp(x) y = Neg(h) }")
    proto.graph.node[1].name = "outer"
    model, run = run_passes(proto, Fuse(), worker=worker)
    (node,) = serialized(model).graph.node
    assert (node.op_type, node.name, list(node.output)) == ("Abs", "outer", ["y"])
    assert run.journal.rewrites == [Rewrite("neg-of-exp", "y")]


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("h = Exp(x) y = Neg(h) z = Abs(h)", "float[n] y, float[n] z", "'h' has 2 consumers"),
        ("h = Exp(x) y = Neg(h)", "float[n] y, float[n] h", "'h' is a graph output"),
        (
            """h = Exp(x) y = Neg(h) z = If(c) <then_branch = t () => (float[n] p) { p = Abs(h) },
               else_branch = e () => (float[n] q) { q = Sqrt(x) }>""",
            "float[n] y, float[n] z",
            "captured by a subgraph",
        ),
    ],
)
def test_a_needed_intermediate_is_refused(worker: Worker, body: str, outputs: str, reason: str) -> None:
    left, run = after(worker, f"g (float[n] x, bool c) => ({outputs}) {{ {body} }}")
    assert left["Neg"] == 1 and left["Exp"] == 1
    assert reason in reasons(run)


def test_nodes_of_two_graphs_do_not_fuse(worker: Worker) -> None:
    left, run = after(
        worker,
        """g (float[n] x, bool c) => (float[n] y) { h = Exp(x)
        y = If(c) <then_branch = t () => (float[n] p) { p = Neg(h) },
                   else_branch = e () => (float[n] q) { q = Sqrt(x) }> }""",
    )
    assert left["Neg"] == 1 and "stands in another graph" in reasons(run)


def test_a_pattern_inside_a_branch_fuses_there(worker: Worker) -> None:
    left, _ = after(
        worker,
        """g (float[n] x, bool c) => (float[n] y) {
        y = If(c) <then_branch = t () => (float[n] p) { h = Exp(x) p = Neg(h) },
                   else_branch = e () => (float[n] q) { q = Sqrt(x) }> }""",
    )
    assert left == {"If": 1, "Abs": 1, "Sqrt": 1}


@pytest.mark.parametrize("body", ["y0 = Mul(x, one)", "y0 = Mul(one, x)"])
def test_a_commutative_pattern_takes_both_orders(worker: Worker, body: str) -> None:
    text = f"g (float[n] x) => (float[n] y) <float one = {{1}}> {{ {body} y = Abs(y0) }}"
    assert after(worker, text, DropOnes())[0] == {"Abs": 1}


def test_a_near_miss_is_recorded_once_with_its_place(worker: Worker) -> None:
    text = "g (float[n] x) => (float[n] y) <float two = {2}> { h = Mul(x, two) y = Abs(h) }"
    left, run = after(worker, text, DropOnes())
    assert left == {"Mul": 1, "Abs": 1}
    (refusal,) = run.journal.refusals
    assert (refusal.rule, refusal.reason) == ("times-one", "the factor is not 1")
    assert "Mul" in refusal.where


def test_an_overridable_initializer_is_no_constant(worker: Worker) -> None:
    text = "g (float[n] x, float one) => (float[n] y) <float one = {1}> { h = Mul(x, one) y = Abs(h) }"
    left, run = after(worker, text, DropOnes())
    assert left == {"Mul": 1, "Abs": 1} and not run.journal.refusals


def test_an_output_does_not_become_an_input(worker: Worker) -> None:
    text = "g (float[n] x) => (float[n] y) <float one = {1}> { y = Mul(x, one) }"
    left, run = after(worker, text, DropOnes())
    assert left == {"Mul": 1}
    assert "graph output 'y' would become an input" in reasons(run)


@pytest.mark.parametrize("keep", ["Exp", "outer", "Neg"])
def test_kept_nodes_stay(worker: Worker, keep: str) -> None:
    proto = parse("g (float[n] x) => (float[n] y) { h = Exp(x) y = Neg(h) }")
    proto.graph.node[1].name = "outer"
    model, run = run_passes(proto, Fuse(), worker=worker, keep=keep)
    assert ops(model) == {"Exp": 1, "Neg": 1}
    assert "--keep" in reasons(run)


PAIRS = "g (float[n] x) => (float[n] c) { p = Exp(x) a = Neg(p) q = Exp(a) b = Neg(q) r = Exp(b) c = Neg(r) }"


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_the_limit_of_bisection_counts_rewrites(worker: Worker, limit: int) -> None:
    left, run = after(worker, PAIRS, journal=Journal(limit=limit))
    assert left["Abs"] == limit == len(run.journal.rewrites)


def test_a_left_out_rewrite_does_not_happen(worker: Worker) -> None:
    journal = Journal(left_out=frozenset({Rewrite("neg-of-exp", "b")}))
    _, run = after(worker, PAIRS, journal=journal)
    assert [rewrite.value for rewrite in run.journal.rewrites] == ["a", "c"]


def test_only_recorded_rewrites_happen_when_replayed(worker: Worker) -> None:
    _, run = after(worker, PAIRS, journal=Journal(only=frozenset({Rewrite("neg-of-exp", "b")})))
    assert [rewrite.value for rewrite in run.journal.rewrites] == ["b"]


def test_a_refused_rewrite_leaves_nothing_behind(worker: Worker) -> None:
    @rule(op("Neg", any_("x")))
    def hesitant(match: Match) -> ir.Value:
        """Makes a node and a constant, then refuses."""
        made = match.op("Add", [match["x"], match.constant(np.ones(3, np.float32), "ones")])
        match.require(False, "on second thoughts")
        return made

    @dataclass(frozen=True)
    class Hesitate(RulePass):
        name: ClassVar[str] = "hesitate"
        rules: ClassVar[tuple[type[Rule], ...]] = (hesitant,)

    proto = parse("g (float[3] x) => (float[3] y) { y = Neg(x) }")
    model, run = run_passes(proto, Hesitate(), worker=worker)
    assert [node.op_type for node in serialized(model).graph.node] == ["Neg"]
    assert not serialized(model).graph.initializer
    assert reasons(run) == "on second thoughts"


def test_rules_that_loop_are_stopped(worker: Worker) -> None:
    @rule(op("Neg", any_("x")))
    def again(match: Match) -> ir.Value:
        """Neg(x) = Neg(x), for ever."""
        return match.op("Neg", [match["x"]])

    @dataclass(frozen=True)
    class Loop(RulePass):
        name: ClassVar[str] = "loop"
        rules: ClassVar[tuple[type[Rule], ...]] = (again,)

    proto = parse("g (float[3] x) => (float[3] y) { y = Neg(x) }")
    model, run = run_passes(proto, Loop(), worker=worker)
    assert ops(model) == {"Neg": 1}
    assert any("loop" in note for note in run.journal.notes)


def test_optional_and_further_inputs(worker: Worker) -> None:
    found: list[tuple[bool, int]] = []

    @rule(op("Clip", any_("x"), maybe("low"), maybe("high")))
    def bounded(match: Match) -> None:
        """Looks at the bounds."""
        found.append((match.get("low") is None, 0))

    @rule(op("Concat", any_("first"), more=True))
    def many(match: Match) -> None:
        """Takes any number of inputs."""
        found.append((False, len(match.root.inputs)))

    @dataclass(frozen=True)
    class Look(RulePass):
        name: ClassVar[str] = "look"
        rules: ClassVar[tuple[type[Rule], ...]] = (bounded, many)

    text = """g (float[n] x) => (float[m] y) <float one = {1}>
      { a = Clip(x, , one) b = Clip(x, one) y = Concat<axis=0>(a, b, x) }"""
    after(worker, text, Look())
    assert sorted(found) == [(False, 0), (False, 3), (True, 0)]


def test_a_constant_in_a_function_is_a_node(worker: Worker) -> None:
    @rule(op("Neg", any_("x")))
    def halve(match: Match) -> ir.Value:
        """Neg(x) = x · ½, wrong on purpose."""
        return match.op("Mul", [match["x"], match.constant(np.array(0.5, np.float32), "half")])

    @dataclass(frozen=True)
    class Halve(RulePass):
        name: ClassVar[str] = "halve"
        rules: ClassVar[tuple[type[Rule], ...]] = (halve,)

    functions = '<domain: "local", opset_import: ["" : 17]> f (v) => (w) { w = Neg(v) }'
    proto = parse("g (float[2] x) => (float[2] y) { y = local.f(x) }", functions=functions)
    model, _ = run_passes(proto, Halve(), worker=worker)
    wanted = parse("g (float[2] x) => (float[2] y) <float half = {0.5}> { y = Mul(x, half) }")
    assert_same(wanted, model, {"x": np.array([2, 4], np.float32)})
