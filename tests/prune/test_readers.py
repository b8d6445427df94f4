"""What readers of a group lose: recurrences, and layers that make the group that they read."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.activations import Collector
from graphopt.joint import side_by_side
from graphopt.model import Model
from graphopt.runtime.pairs import Shares
from graphopt.runtime.worker import Worker
from graphopt_passes.axes import groups
from graphopt_passes.prune.readers import Reader, readers
from graphopt_passes.prune.selection import Order, ordered
from graphopt_passes.refit.moments import moments
from graphopt_passes.refit.recurrent import fittable
from tests.support import compute, serialized

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS, HIDDEN = 4, 8
ITSELF, OTHERS = 3, 5  # units that only their own gates read, and that only the others' gates do
Weights = dict[str, np.ndarray]


def built(nodes: str, weights: Weights) -> onnx.ModelProto:
    interface = f"(float[t,b,{INPUTS}] x) => (float[t,b,3] y)"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {interface} {{ {nodes} }}')
    for name, one in weights.items():
        data = one if one.dtype == np.int64 else one.astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(data, name))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def loop(size: int = HIDDEN) -> np.ndarray:
    """What rows [size] read of units [size]: little, but for the two units."""
    found = 0.05 * np.random.default_rng(1).standard_normal((size, size))
    found[:, [ITSELF, OTHERS]] = 0
    found[ITSELF, ITSELF] = 2.0
    found[:, OTHERS] = 6.0
    found[OTHERS, OTHERS] = 0.0
    return found


def weights(op: str, directions: int = 1, inputs: int = INPUTS) -> Weights:
    """Of a recurrent layer that loops, and of a product behind it that does not read the two units."""
    rng, gates = np.random.default_rng(2), GATES[op]
    v = rng.standard_normal((directions, HIDDEN, 3))
    v[:, [ITSELF, OTHERS]] = 0
    return {
        "w": 0.4 * rng.standard_normal((directions, gates * HIDDEN, inputs)),
        "r": np.tile(loop(), (directions, gates, 1)),
        "b": 0.2 * rng.standard_normal((directions, 2 * gates * HIDDEN)),
        "v": v.reshape(-1, 3),
        "one": np.array([1]),
        "whole": np.array([0, 0, directions * HIDDEN]),
    }


def samples(time: int = 6) -> list[Weights]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((time, 2, INPUTS)).astype(np.float32)} for _ in range(16)]


def sums_of(proto: onnx.ModelProto, worker: Worker, data: list[Weights]) -> dict[str, Shares]:
    model = Model.of(proto)
    found = moments(Collector(worker), side_by_side(model, model), fittable(model).values(), data)
    return {layer.name: shares for layer, shares in found}


def order_of(proto: onnx.ModelProto, sums: dict[str, Shares], method: str = "obs") -> Order:
    """The order of the last group."""
    model = Model.of(proto)
    group = groups(model).groups[-1]
    found: list[Reader] = []
    for layer in fittable(model).values():
        if any(member.port is not None and member.port.node is layer.node for member in group.consumers):
            found += readers(group, layer, sums.get(layer.name))
    return ordered(found, np.ones(group.width), method)


def check(order: Order) -> None:
    """The unit that nobody else reads goes first, without loss; the one that others' gates read stays."""
    assert order.units[0] == ITSELF and order.lost[1] < 1e-9
    assert OTHERS in order.units[HIDDEN // 2 :]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("method", ["obs", "lasso", "energy"])
@pytest.mark.parametrize("op", GATES)
def test_what_a_unit_reads_of_itself_is_no_loss(op: str, method: str, known: bool, worker: Worker) -> None:
    text = f"s = {op}<hidden_size = {HIDDEN}>(x, w, r, b)  u = Squeeze(s, one)  y = MatMul(u, v)"
    proto = built(text, {name: one for name, one in weights(op).items() if name != "whole"})
    check(order_of(proto, sums_of(proto, worker, samples()) if known else {}, method))


@pytest.mark.parametrize("op", GATES)
def test_a_unit_goes_with_its_rows_of_both_directions(op: str, worker: Worker) -> None:
    text = f"""s = {op}<hidden_size = {HIDDEN}, direction = "bidirectional">(x, w, r, b)
        t = Transpose<perm = [0,2,1,3]>(s)  u = Reshape(t, whole)  y = MatMul(u, v)"""
    proto = built(text, {name: one for name, one in weights(op, 2).items() if name != "one"})
    check(order_of(proto, sums_of(proto, worker, samples())))


def test_layers_that_share_their_weights_have_rows_of_their_own(worker: Worker) -> None:
    text = f"""n = Neg(x)  s = RNN<hidden_size = {HIDDEN}>(x, w, r, b)  u = Squeeze(s, one)
        q = RNN<hidden_size = {HIDDEN}>(n, w, r, b)  p = Squeeze(q, one)  m = MatMul(u, v)  k = MatMul(p, v2)
        y = Add(m, k)"""
    mine = {name: one for name, one in weights("RNN").items() if name != "whole"}
    proto = built(text, {**mine, "v2": mine["v"][::-1].copy()})
    assert len(groups(Model.of(proto)).groups) == 2
    order = order_of(proto, sums_of(proto, worker, samples()))
    assert order.units[0] != ITSELF  # the last group is the second layer's, of which v2 reads this unit
    proto = built(text, {**mine, "v2": mine["v"]})
    check(order_of(proto, sums_of(proto, worker, samples())))


@pytest.mark.parametrize("op", GATES)
def test_inputs_that_are_tied_to_the_states_go_with_them(op: str, worker: Worker) -> None:
    """Unit j of x + h is column j of W as well as of R, and row j of all gates of both."""
    text = f"""a = MatMul(x, e)  s = {op}<hidden_size = {HIDDEN}>(a, w, r, b)  u = Squeeze(s, one)
        c = Add(a, u)  y = MatMul(c, v)"""
    mine = {name: one for name, one in weights(op).items() if name != "whole"}
    mine |= {"w": mine["r"], "e": np.random.default_rng(3).standard_normal((INPUTS, HIDDEN))}
    proto = built(text, mine)
    check(order_of(proto, sums_of(proto, worker, samples())))


def test_so_with_a_layer_that_adds_to_what_it_reads(worker: Worker) -> None:
    mine = {"e": np.random.default_rng(3).standard_normal((INPUTS, HIDDEN)), "r": loop().T}
    proto = built(
        "a = MatMul(x, e)  u = MatMul(a, r)  c = Add(a, u)  y = MatMul(c, v)",
        mine | {"v": weights("RNN")["v"]},
    )
    check(order_of(proto, sums_of(proto, worker, samples())))


@pytest.mark.parametrize("op", GATES)
def test_a_first_step_reads_zeros_of_the_states(op: str, worker: Worker) -> None:
    """Sequences of one step: the recurrence loses nothing but what H is damped with."""
    text = f"s = {op}<hidden_size = {HIDDEN}>(x, w, r, b)  u = Squeeze(s, one)  y = MatMul(u, v)"
    mine = {name: one for name, one in weights(op).items() if name != "whole"}
    proto = built(text, mine | {"r": mine["r"] / 30})
    sums = sums_of(proto, worker, samples(time=1))
    assert sums["s"].fit.count == 12 * 2 and not sums["s"].fit.xx[:, INPUTS:].any()
    assert set(order_of(proto, sums).units[:2]) == {ITSELF, OTHERS}


@pytest.mark.parametrize("op", GATES)
def test_a_recurrence_whose_states_no_step_reads_has_no_vote(op: str) -> None:
    """One step from a state that is given: units that only gates would read go, and nothing is lost."""
    text = f"s = {op}<hidden_size = {HIDDEN}>(x, w, r, b, , h)  u = Squeeze(s, one)  y = MatMul(u, v)"
    mine = {name: one for name, one in weights(op).items() if name != "whole"}
    half = np.arange(HIDDEN) < HIDDEN // 2
    read = {"r": np.where(half, 3.0, 0.1) * np.ones_like(mine["r"]), "v": mine["v"].copy()}
    read["v"][half], read["v"][~half] = 0.0, 0.3
    proto = built(text, mine | read | {"h": np.full((1, 2, HIDDEN), 1e-6)})
    result = graphopt.optimize(proto, channels=0.5, data=samples(time=1), measure=False)
    feeds, after = samples(time=1)[0], serialized(result.model)
    assert {one.dims[-1] for one in after.graph.initializer if len(one.dims) == 3} == {INPUTS, HIDDEN // 2}
    np.testing.assert_allclose(compute(after, feeds)[0], compute(proto, feeds)[0], atol=3e-5)
