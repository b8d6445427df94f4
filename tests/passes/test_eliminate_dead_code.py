"""eliminate-dead-code: what nobody needs goes, what an interface or a capture needs stays."""

from __future__ import annotations

import numpy as np

from graphopt.journal import Journal
from graphopt.runtime.worker import Worker
from graphopt_passes.exact.eliminate_dead_code import EliminateDeadCode
from tests.support import assert_same, ops, parse, run_passes

X = {"x": np.array([1, 2], np.float32)}


def test_a_dead_chain_goes_with_its_initializers(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] unused = {3, 4}>
        { a = Neg(x) b = Add(a, w) r = RandomNormal<shape = [2]>() y = Abs(x) }"""
    )
    model, run = run_passes(proto, EliminateDeadCode(), worker=worker)
    assert ops(model) == {"Abs": 1}
    assert not model.ir.graph.initializers
    assert run.journal.counts()["eliminate-dead-code"] == 5
    assert_same(proto, model, X)


def test_captures_keep_nodes_and_initializers_alive(worker: Worker) -> None:
    proto = parse(
        """g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}>
        { a = Neg(x) dead = Abs(x)
          y = If(c) <then_branch = t () => (float[2] p) { gone = Add(a, dead) p = Add(a, w) },
                     else_branch = e () => (float[2] q) { q = Sub(a, w) }> }"""
    )
    model, _ = run_passes(proto, EliminateDeadCode(), worker=worker)
    assert ops(model) == {"Neg": 1, "If": 1, "Add": 1, "Sub": 1}
    assert_same(proto, model, X | {"c": np.array(True)})


def test_a_dead_if_releases_what_it_captured(worker: Worker) -> None:
    proto = parse(
        """g (bool c, float[2] x) => (float[2] y)
        { a = Neg(x) y = Abs(x)
          z = If(c) <then_branch = t () => (float[2] p) { p = Abs(a) },
                     else_branch = e () => (float[2] q) { q = Neg(a) }> }"""
    )
    model, _ = run_passes(proto, EliminateDeadCode(), worker=worker)
    assert ops(model) == {"Abs": 1}


def test_overridable_and_output_initializers_and_unused_inputs_stay(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x, float[2] w = {1, 2}, float[2] unused) => (float[2] y, float[2] v)
        <float[2] v = {3, 4}> { y = Abs(x) }"""
    )
    model, run = run_passes(proto, EliminateDeadCode(), worker=worker)
    assert sorted(model.ir.graph.initializers) == ["v", "w"]
    assert not run.journal.rewrites


def test_one_used_output_keeps_a_node(worker: Worker) -> None:
    proto = parse("g (float[4] x) => (float[2] y) { y, z = Split(x) }")
    model, _ = run_passes(proto, EliminateDeadCode(), worker=worker)
    assert ops(model) == {"Split": 1}


FUNCTIONS = """
<domain: "local", opset_import: ["" : 17, "local" : 1]> outer (v) => (r) { r = local.inner(v) }
<domain: "local", opset_import: ["" : 17]> inner (v) => (r) { d = Abs(v) r = Neg(v) }
<domain: "local", opset_import: ["" : 17]> spare (v) => (r) { r = Neg(v) }
"""


def test_functions_go_with_their_last_call_and_are_swept_inside(worker: Worker) -> None:
    text = "g (float[2] x) => (float[2] y) { z = local.outer(x) y = Abs(x) }"
    model, _ = run_passes(parse(text, functions=FUNCTIONS), EliminateDeadCode(), worker=worker)
    assert [name for _, name, _ in model.ir.functions] == ["spare"]
    proto = parse("g (float[2] x) => (float[2] y) { y = local.outer(x) }", functions=FUNCTIONS)
    model, _ = run_passes(proto, EliminateDeadCode(), worker=worker)
    assert sorted(name for _, name, _ in model.ir.functions) == ["inner", "outer", "spare"]
    assert ops(model) == {"outer": 1, "inner": 1, "Neg": 2}
    assert_same(proto, model, X)


def test_kept_nodes_and_the_limit_are_respected(worker: Worker) -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Neg(x) b = Neg(x) c = Exp(x) y = Abs(x) }")
    model, _ = run_passes(proto, EliminateDeadCode(), worker=worker, keep="Exp", journal=Journal(limit=1))
    assert ops(model) == {"Neg": 1, "Exp": 1, "Abs": 1}


def test_control_flow_around_a_kept_node_stays(worker: Worker) -> None:
    proto = parse(
        """g (bool c, float[2] x) => (float[2] y)
        { y = Abs(x)
          z = If(c) <then_branch = t () => (float[2] p) { p = Exp(x) },
                     else_branch = e () => (float[2] q) { q = Neg(x) }> }"""
    )
    assert ops(run_passes(proto, EliminateDeadCode(), worker=worker, keep="Sin")[0]) == {"Abs": 1}
    kept, _ = run_passes(proto, EliminateDeadCode(), worker=worker, keep="Exp")
    assert ops(kept) == {"Abs": 1, "If": 1, "Exp": 1, "Neg": 1}
