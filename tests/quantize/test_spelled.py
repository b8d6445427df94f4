"""HardSigmoid and HardSwish spelled out compute the same, run on integers, and come back on floats."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.compiler import optimize
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.proof.executed import Executed
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.audit import audit
from graphopt_passes.quantize.placement import Placement
from graphopt_passes.quantize.spelled import assemble, spell
from tests.quantize.test_insert_qdq import assert_means, feeds_of, weighted, whole
from tests.support import compute, serialized

OPERATORS = [
    "HardSwish",
    "HardSigmoid",
    "HardSigmoid<alpha = 0.1666>",
    "HardSigmoid<alpha = 0.5, beta = 0.0>",
]


def _between(operator: str) -> onnx.ModelProto:
    return weighted(
        f"""agraph (float[1,8,6,6] x) => (float[1,8,6,6] y) {{
        a = Conv<pads = [1,1,1,1]>(x, w)  h = {operator}(a)  y = Conv<pads = [1,1,1,1]>(h, w) }}""",
        w=(8, 8, 3, 3),
    )


def _spelled(proto: onnx.ModelProto, worker: Worker, keep: frozenset[str] = frozenset()) -> Model:
    model = Model.of(proto)
    spell(model, Run(CPU, worker, keep=keep))
    onnx.checker.check_model(serialized(model), full_check=True)
    return model


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_pieces_compute_what_the_operator_does(operator: str, size: float, worker: Worker) -> None:
    proto = _between(operator)
    spelled = serialized(_spelled(proto, worker))
    assert "Hard" not in "".join(node.op_type for node in spelled.graph.node)
    for seed in range(3):
        feeds = feeds_of(proto, seed, size)
        for old, new in zip(compute(proto, feeds), compute(spelled, feeds), strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-6 * np.abs(old).max())


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_pieces_run_on_integers(operator: str, worker: Worker) -> None:
    proto = serialized(_spelled(_between(operator), worker))
    model = assert_means(proto, whole(proto, worker), worker)
    executed = Executed.of(model, worker=worker, threads=1)
    assert audit(executed).green
    ran = [node.op_type for node in executed.nodes()]
    assert not {"Add", "Mul", "Clip", "Conv"} & set(ran)
    assert ran.count("QuantizeLinear") == 1


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_is_not_chosen_comes_back_as_it_was(operator: str, worker: Worker) -> None:
    proto = _between(operator)
    model = Model.of(proto)
    before = serialized(model)
    wholes = spell(model, Run(CPU, worker))
    pieces = [name for name in Placement(model, Run(CPU, worker)).parts if name not in ("a", "y")]
    assert len(pieces) == (3 if operator == "HardSwish" else 2)
    for piece in pieces:
        assert not assemble(model.clone(), wholes, {piece})
    clone = model.clone()
    assert assemble(clone, wholes, {"a", "y"})
    assert list(serialized(clone).graph.node) == list(before.graph.node)


def test_what_was_scaled_stays_spelled_out(worker: Worker) -> None:
    """Smoothing may write a factor per channel into the last product."""
    proto = _between("HardSigmoid")
    model = Model.of(proto)
    run = Run(CPU, worker)
    wholes = spell(model, run)
    last = next(node for node in model.ir.graph if node.outputs[0].name == "h")
    factors = np.linspace(0.1, 0.3, 8, dtype=np.float32).reshape(8, 1, 1)
    last.replace_input_with(1, run.new_constant(model, last, factors, "factors"))
    before = serialized(model)
    assert not assemble(model, wholes, ())
    assert serialized(model) == before


def test_graphs_inside_and_outputs(worker: Worker) -> None:
    proto = weighted(
        """agraph (float[1,8,6,6] x, bool c) => (float[1,8,6,6] y, float[1,8,6,6] h) {
        h = HardSwish(x)  y = If(c) <then_branch = agraph () => (float[1,8,6,6] t) { t = HardSwish(h) },
        else_branch = agraph () => (float[1,8,6,6] e) { e = HardSigmoid(x) }> }"""
    )
    model = Model.of(proto)
    before = serialized(model)
    wholes = spell(model, Run(CPU, worker))
    assert set(wholes) == {"h", "t", "e"}
    for seed in range(2):
        feeds = feeds_of(proto, seed)
        for old, new in zip(compute(proto, feeds), compute(serialized(model), feeds), strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-6)
    assert assemble(model, wholes, ())
    assert serialized(model).graph.node == before.graph.node
    assert not assemble(model, wholes, ())
    assert serialized(model).graph.node == before.graph.node


def test_branches_with_values_of_one_name_are_left_alone(worker: Worker) -> None:
    proto = weighted(
        """agraph (float[1,8,6,6] x, bool c) => (float[1,8,6,6] y) {
        y = If(c) <then_branch = agraph () => (float[1,8,6,6] t) { t = HardSigmoid<alpha = 0.1>(x) },
        else_branch = agraph () => (float[1,8,6,6] t) { t = HardSigmoid<alpha = 0.3>(x) }> }"""
    )
    assert serialized(_spelled(proto, worker)).graph.node == serialized(Model.of(proto)).graph.node


def test_what_is_on_floats_is_reported_as_one_operator() -> None:
    proto = weighted(
        """agraph (float[1,8,6,6] x) => (float[1,8,6,6] y) {
        c = Conv<pads = [1,1,1,1]>(x, w)  t = Tanh(c)  h = HardSwish(t)  s = Sin(h)
        y = Conv<pads = [1,1,1,1]>(s, w) }""",
        w=(8, 8, 3, 3),
    )
    data = [feeds_of(proto, seed) for seed in range(8)]
    result = optimize(proto, data=data, precision="int8", measure=False, threads=1)
    assert [node.op_type for node in serialized(result.model).graph.node].count("HardSwish") == 1
    rows = [(row.name, row.op, row.precision) for row in result.report.layers]
    assert ("h", "HardSwish", "float32") in rows and not [row for row in rows if row[1] in ("Mul", "Add")]


def test_what_is_kept_and_what_has_no_pieces(worker: Worker) -> None:
    for operator in ("HardSigmoid<alpha = -0.2>", "HardSigmoid<beta = -0.5>", "HardSigmoid<alpha = 1e-39>"):
        proto = _between(operator)
        assert serialized(_spelled(proto, worker)).graph.node == serialized(Model.of(proto)).graph.node
    kept = _spelled(_between("HardSwish"), worker, keep=frozenset({"HardSwish"}))
    assert any(node.op_type == "HardSwish" for node in serialized(kept).graph.node)


def test_from_end_to_end() -> None:
    proto = _between("HardSwish")
    data = [feeds_of(proto, seed) for seed in range(8)]
    result = optimize(proto, data=data, precision="int8", measure=False, threads=1)
    operators = [node.op_type for node in serialized(result.model).graph.node]
    assert "HardSwish" not in operators and "QuantizeLinear" in operators
    kept = optimize(proto, data=data, precision="int8", measure=False, threads=1, keep=["HardSwish"])
    assert [node.op_type for node in serialized(kept.model).graph.node].count("HardSwish") == 1
