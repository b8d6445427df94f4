"""freeze-initializers: the one pass that changes what callers may feed."""

from __future__ import annotations

from graphopt.journal import Journal
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.exact.freeze_initializers import FreezeInitializers
from tests.support import parse


def test_only_overridable_inputs_go(worker: Worker) -> None:
    text = "g (float[2] x, float[2] w = {1, 2}, float[2] b) => (float[2] y) { a = Add(x, w) y = Add(a, b) }"
    model, run = Model.of(parse(text)), Run(CPU, worker)
    assert FreezeInitializers().apply(model, run)
    assert [value.name for value in model.ir.graph.inputs] == ["x", "b"]
    assert list(model.ir.graph.initializers) == ["w"]
    assert not FreezeInitializers().apply(model, run)


def test_the_limit_is_respected(worker: Worker) -> None:
    text = "g (float[2] v = {3, 4}, float[2] w = {1, 2}) => (float[2] y) { y = Add(v, w) }"
    model = Model.of(parse(text))
    FreezeInitializers().apply(model, Run(CPU, worker, Journal(limit=1)))
    assert [value.name for value in model.ir.graph.inputs] == ["w"]
