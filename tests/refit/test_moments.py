"""Student and teacher in one session, and what least squares makes of their sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.activations import Collector
from graphopt.joint import side_by_side
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.refit.linear import Linear, linear_layers
from graphopt_passes.refit.moments import moments
from graphopt_passes.refit.solve import Fit, Problem
from graphopt_passes.refit.waves import waves
from tests.support import compute, parse, serialized

TEXT = """g (float[n,3,8,8] x, bool flag, float[8,3,3,3] u, float[8] a, float[8,1,3,3] v, float[8,8,1,1] w,
float[8,5] m, float[5] b) => (float[n,5] y) {
p = Conv<pads = [1,1,1,1]>(x, u, a)  q = Relu(p)
r = Conv<group = 8, pads = [1,1,1,1]>(q, v)  s = Conv(r, w)  t = Add(s, q)
c = If (flag) < then_branch = yes () => (float[n,8,8,8] k) { k = Relu(t) },
                else_branch = no () => (float[n,8,8,8] l) { l = Neg(t) } >
d = ReduceMean<axes = [2,3], keepdims = 0>(c)  e = MatMul(d, m)  y = Add(e, b) }"""


def build(seed: int = 0) -> onnx.ModelProto:
    rng, proto = np.random.default_rng(seed), parse(TEXT)
    for value in list(proto.graph.input)[2:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        data = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(data, value.name))
    del proto.graph.input[2:]
    return proto


def samples(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {"x": rng.standard_normal((1 + i % 2, 3, 8, 8)).astype(np.float32), "flag": np.array(i % 3 > 0)}
        for i in range(count)
    ]


def layers_of(model: Model) -> list[Linear]:
    return [one for one in linear_layers(model) if isinstance(one, Linear)]


def shaken(model: Model, worker: Worker, name: str, seed: int = 0) -> Model:
    """A student: the model with noise on one weight."""
    student, rng = model.clone(), np.random.default_rng(seed)
    layer = next(one for one in layers_of(student) if one.name == name)
    fit = layer.fit()
    noise = rng.standard_normal(fit.rows.shape) * np.abs(fit.rows).mean()
    layer.write(student, Run(CPU, worker), Fit(fit.rows + noise, fit.bias))
    return student


def test_both_run_in_one_model(worker: Worker) -> None:
    proto = build()
    teacher = Model.of(proto)
    student = shaken(teacher, worker, "p")
    joint = side_by_side(teacher, student)
    named = {value.name: value for node in joint.model.ir.graph for value in node.outputs}
    joint.model.ir.graph.outputs.append(named[joint.students("y")])
    both = serialized(joint.model)
    onnx.checker.check_model(both)
    assert len(both.graph.initializer) == len(proto.graph.initializer) + 1  # all but one are shared
    for feeds in samples(4):
        found = compute(both, feeds)
        np.testing.assert_array_equal(found[0], compute(proto, feeds)[0])
        np.testing.assert_array_equal(found[1], compute(serialized(student), feeds)[0])


def test_a_student_that_is_its_teacher_has_no_error(worker: Worker) -> None:
    model = Model.of(build())
    found = dict(
        (layer.name, (layer, pairs))
        for layer, pairs in moments(
            Collector(worker, threads=1), side_by_side(model, model), layers_of(model), samples()
        )
    )
    assert list(found) == ["p", "r", "s", "e"]
    for layer, pairs in found.values():
        assert layer.fit().relative_error(pairs.fit) < 1e-5
        assert layer.fit().relative_error(pairs.held) < 1e-5
        assert pairs.fit.count > pairs.held.count > 0


@pytest.mark.parametrize("seed", range(2))
def test_a_layer_makes_up_for_those_before_it(seed: int, worker: Worker) -> None:
    """Fitted to its teacher's outputs, the next layer errs less on samples that it never saw."""
    teacher = Model.of(build(seed))
    student = shaken(teacher, worker, "r", seed)
    layer = next(one for one in layers_of(student) if one.name == "s")
    ((_, pairs),) = moments(
        Collector(worker, threads=1), side_by_side(teacher, student), [layer], samples(48)
    )
    fit = Problem.of(pairs.fit, layer.fit(), shifts=True).dense(1e-3)
    assert fit.relative_error(pairs.held) < 0.5 * layer.fit().relative_error(pairs.held)

    def error() -> float:
        outputs = [
            [compute(serialized(one), feeds)[0] for feeds in samples(8, 9)] for one in (teacher, student)
        ]
        return sum(float(np.square(a - b).sum()) for a, b in zip(*outputs, strict=True))

    before = error()
    layer.write(student, Run(CPU, worker), fit)
    assert error() < 0.7 * before


def test_layers_that_depend_on_each_other_go_one_after_the_other() -> None:
    text = """g (float[n,4] x, float[4,4] a, float[4,4] b, float[4,4] c, float[4,4] d) => (float[n,4] y) {
    p = MatMul(x, a)  q = MatMul(x, b)  s = Add(p, q)  r = MatMul(s, c)  t = Add(r, p)  y = MatMul(t, d) }"""
    proto = parse(text)
    for value in list(proto.graph.input)[1:]:
        proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), value.name))
    del proto.graph.input[1:]
    model = Model.of(proto)
    assert [[one.name for one in wave] for wave in waves(model, layers_of(model))] == [
        ["p", "q"],
        ["r"],
        ["y"],
    ]
