"""Recurrent layers: what they read step by step, what they should give, and what of their units can go."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.activations import Collector
from graphopt.joint import side_by_side
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.steps import Steps
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.refit.kept import fit_kept
from graphopt_passes.refit.moments import moments
from graphopt_passes.refit.recurrent import Recurrent, fittable, recurrent_layers
from graphopt_passes.refit.solve import Fit
from tests.support import compute, serialized

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
KINDS = ["LSTM", "GRU", "GRU<linear_before_reset = 1>", "RNN"]
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
TIME, BATCH, INPUTS, HIDDEN = 7, 3, 5, 8
PARTS = (slice(INPUTS), slice(INPUTS, None))


def recurrent(kind: str, direction: str = "forward", *, bias: bool = True, copies: bool = False) -> Any:
    """A recurrent layer that a product reads; with ``copies`` half of its units are those of the others."""
    op, _, options = kind.partition("<")
    attributes = f'hidden_size = {HIDDEN}, direction = "{direction}"' + (
        f", {options[:-1]}" if options else ""
    )
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[{TIME},{BATCH},{INPUTS}] x) => (float[a,b,c] y)
        {{ s = {op}<{attributes}>(x, w, r{", b" if bias else ""})  t = Transpose<perm = [0,2,1,3]>(s)
        u = Reshape(t, shape)  y = MatMul(u, v) }}"""
    )
    count, rng = DIRECTIONS[direction], np.random.default_rng(0)
    sizes = {"w": (count, GATES[op], HIDDEN, INPUTS), "r": (count, GATES[op], HIDDEN, HIDDEN)}
    sizes["b"] = (count, 2 * GATES[op], HIDDEN)
    data = {name: 0.6 * rng.standard_normal(size) for name, size in sizes.items()}
    if copies:
        for one in data.values():
            one[:, :, HIDDEN // 2 :] = one[:, :, : HIDDEN // 2]
    flat = {name: one.reshape(count, -1, *one.shape[3:]) for name, one in data.items() if name != "b" or bias}
    flat["v"] = rng.standard_normal((count * HIDDEN, 4))
    for name, one in flat.items():
        proto.graph.initializer.append(numpy_helper.from_array(one.astype(np.float32), name))
    shape = np.array([0, 0, count * HIDDEN])
    proto.graph.initializer.append(numpy_helper.from_array(shape, "shape"))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def samples(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((TIME, BATCH, INPUTS)).astype(np.float32)} for _ in range(count)]


def states(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("s", 1, None))
    return np.asarray(compute(copy, feeds)[0])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rows_are_inputs_and_the_states_before(direction: str) -> None:
    proto, feeds = recurrent("LSTM", direction), samples(1)[0]
    x, y = feeds["x"], states(proto, feeds)
    backward = {"forward": (False,), "reverse": (True,)}.get(direction, (False, True))
    rows, nothing = Steps(INPUTS, HIDDEN, backward, from_zero=False).read(x, y, 0)
    assert rows.shape == (len(backward), (TIME - 1) * BATCH, INPUTS + HIDDEN) and not nothing.size
    for index, back in enumerate(backward):
        order = range(TIME)[::-1] if back else range(TIME)
        expected = [
            np.concatenate([x[step], y[before, index]], axis=1)
            for before, step in zip(order, list(order)[1:], strict=False)
        ]
        np.testing.assert_array_equal(rows[index], np.concatenate(expected))
    whole, _ = Steps(INPUTS, HIDDEN, backward, from_zero=True).read(x, y, 0)
    for index, back in enumerate(backward):
        first = x[-1] if back else x[0]
        np.testing.assert_array_equal(whole[index, :BATCH, :INPUTS], first)
        np.testing.assert_array_equal(whole[index, :BATCH, INPUTS:], 0)
    np.testing.assert_array_equal(whole[:, BATCH:], rows)


SIZES = [(1, 1), (7, 4), (9000, 1), (8192, 4), (2000, 100), (2, 8192), (3, 5000), (1, 20000), (7, 20000)]


@pytest.mark.parametrize("from_zero", [True, False])
@pytest.mark.parametrize(("time", "batch"), SIZES)
def test_of_many_steps_the_same_are_read_of_all_sequences(time: int, batch: int, from_zero: bool) -> None:
    x = np.broadcast_to(np.arange(batch, dtype=np.float32)[:, None], (time, batch, 1))
    y = np.broadcast_to(np.arange(1, time + 1, dtype=np.float32)[:, None, None, None], (time, 1, batch, 1))
    (rows,), _ = Steps(1, 1, (False,), from_zero).read(x, y, 0)
    if time == 1 and not from_zero:
        assert not len(rows)
        return
    sequences, steps = (np.unique(column) for column in rows.T)
    assert 0 < len(rows) == len(sequences) * len(steps) <= 8192
    assert len(rows) > 4096 or len(rows) == batch * (time - (not from_zero)) or batch > 2048
    assert len(sequences) == batch if batch <= 8192 else len(sequences) > 4096
    assert len(set(np.diff(steps))) < 2 and (from_zero or 0 not in steps)


def test_an_empty_batch_has_no_rows() -> None:
    rows, _ = Steps(1, 2, (False,), True).read(np.zeros((3, 0, 1)), np.zeros((3, 1, 0, 2)), 0)
    assert rows.shape == (1, 0, 3)


@pytest.mark.parametrize("wrong", [(6, 1, BATCH, HIDDEN), (TIME, 2, BATCH, HIDDEN), (TIME, 1, BATCH, 4)])
def test_states_of_another_layer_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="gives"):
        Steps(INPUTS, HIDDEN, (False,), from_zero=True).read(
            np.zeros((TIME, BATCH, INPUTS)), np.zeros(wrong), 0
        )
    states = np.zeros((TIME, 1, BATCH, HIDDEN))
    states[2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        Steps(INPUTS, HIDDEN, (False,), from_zero=True).read(np.zeros((TIME, BATCH, INPUTS)), states, 0)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_targets_are_sums_over_what_the_layer_multiplies(kind: str, direction: str, worker: Worker) -> None:
    proto, data = recurrent(kind, direction), samples(8)
    model = Model.of(proto)
    (layer,) = recurrent_layers(model)
    ((_, found),) = moments(Collector(worker), side_by_side(model, model), [layer], data)
    steps = layer.steps(0)
    fitted = [one for index, one in enumerate(data) if index % 4 != 3]
    rows = np.concatenate([steps.read(one["x"], states(proto, one), 0)[0] for one in fitted], axis=1)
    fit = layer.fit()
    for index, x in enumerate(rows.astype(np.float64)):
        z = x @ fit.rows[index].T + fit.bias[index]
        for sums, expected in (("xx", x.T @ x), ("xy", x.T @ z), ("x", x.sum(0)), ("y", z.sum(0))):
            np.testing.assert_allclose(getattr(found.fit, sums)[index], expected, rtol=1e-6, atol=5e-5)
        np.testing.assert_allclose(found.fit.yy[index], (z**2).sum(0), rtol=1e-6)
    assert found.fit.count == rows.shape[1] and found.held.count == rows.shape[1] // 3


def gathered(layer_of: onnx.ModelProto, data: list[dict[str, np.ndarray]], worker: Worker) -> Any:
    """The recurrent layer with its sums."""
    model = Model.of(layer_of)
    (layer,) = recurrent_layers(model)
    ((_, found),) = moments(Collector(worker), side_by_side(model, model), [layer], data)
    return layer, found


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", ["GRU", "GRU<linear_before_reset = 1>"])
def test_a_gate_of_a_gru_varies_by_its_inputs_and_its_states_apart(
    kind: str, direction: str, worker: Worker
) -> None:
    proto, data = recurrent(kind, direction), [{"x": one["x"] + 3} for one in samples(8)]
    layer, found = gathered(proto, data, worker)
    fit, sums, rows = layer.fit(), found.fit, []
    for one in (one for index, one in enumerate(data) if index % 4 != 3):
        rows.append(layer.steps(0).read(one["x"], states(proto, one), 0)[0])
    x = np.concatenate(rows, axis=1).astype(np.float64)
    x[:, :, :INPUTS] -= x[:, :, :INPUTS].mean(axis=1, keepdims=True)
    parts = [x[:, :, part] @ fit.rows[:, :, part].swapaxes(1, 2) for part in PARTS]
    expected = sum(np.square(part).sum(axis=1) for part in parts)
    np.testing.assert_allclose(sums.yy - sums.y**2 / sums.count, expected, rtol=5e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_an_input_that_goes_moves_to_the_bias(kind: str, worker: Worker) -> None:
    data = samples(16)
    for one in data:
        one["x"][:, :, 2] = 3.0
    layer, found = gathered(recurrent(kind), data, worker)
    before, kept = layer.fit(), np.delete(np.arange(layer.columns), 2)
    after = fit_kept(layer, found, kept)
    np.testing.assert_allclose(after.bias, before.bias + 3 * before.rows[:, :, 2], rtol=0, atol=1e-12)
    np.testing.assert_allclose(after.rows[:, :, kept], before.rows[:, :, kept], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["GRU", "GRU<linear_before_reset = 1>"])
def test_neither_inputs_nor_the_bias_of_a_gru_stand_in_for_a_state(kind: str, worker: Worker) -> None:
    layer, found = gathered(recurrent(kind), [{"x": one["x"] + 1} for one in samples(16)], worker)
    before, kept = layer.fit(), np.delete(np.arange(layer.columns), INPUTS + 2)
    after = fit_kept(layer, found, kept)
    np.testing.assert_allclose(after.bias, before.bias, rtol=0, atol=1e-12)
    np.testing.assert_allclose(after.rows[:, :, :INPUTS], before.rows[:, :, :INPUTS], rtol=0, atol=1e-12)
    assert np.abs(after.rows - before.rows)[:, :, kept].max() > 0.01


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_writing_what_was_read_changes_nothing(kind: str, bias: bool, worker: Worker) -> None:
    proto, feeds = recurrent(kind, "bidirectional", bias=bias), samples(1)[0]
    model, run = Model.of(proto), Run(CPU, worker)
    (layer,) = recurrent_layers(model)
    layer.write(model, run, layer.fit())
    np.testing.assert_array_equal(compute(serialized(model), feeds)[0], compute(proto, feeds)[0])
    fit = layer.fit()
    layer.write(model, run, Fit(fit.rows, fit.bias + 0.5))
    after = serialized(model)
    onnx.checker.check_model(after, full_check=True)
    (again,) = recurrent_layers(model)
    np.testing.assert_allclose(again.fit().bias, fit.bias + 0.5, atol=1e-6)
    assert np.abs(compute(after, feeds)[0] - compute(proto, feeds)[0]).max() > 0.01


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_units_that_others_copy_go_without_loss(kind: str, direction: str) -> None:
    proto, sqnr = recurrent(kind, direction, copies=True), {}
    for refit in (True, False):
        result = graphopt.optimize(proto, channels=0.5, refit=refit, data=samples(64), measure=False)
        after = serialized(result.model)
        onnx.checker.check_model(after, full_check=True)
        assert {tuple(one.dims)[-1] for one in after.graph.initializer if len(one.dims) == 3} == {4, INPUTS}
        feeds = samples(1, seed=9)[0]
        (old,), (new,) = compute(proto, feeds), compute(after, feeds)
        sqnr[refit] = -10 * np.log10(np.square(new - old).sum() / np.square(old).sum())
    assert sqnr[True] > 30 and sqnr[True] > sqnr[False] + 15


def test_what_cannot_be_fitted() -> None:
    proto = recurrent("LSTM")
    assert set(fittable(Model.of(proto))) == {"s", "y"}
    hidden = recurrent("LSTM")
    hidden.graph.node[0].output[:] = ["", "s"]
    assert not list(recurrent_layers(Model.of(hidden)))
    computed = recurrent("LSTM")
    computed.graph.node[0].input[1] = "q"
    computed.graph.node.insert(0, onnx.helper.make_node("Neg", ["w"], ["q"]))
    assert not list(recurrent_layers(Model.of(computed)))


def test_it_is_known_by_its_states() -> None:
    (layer,) = recurrent_layers(Model.of(recurrent("GRU", "bidirectional")))
    assert isinstance(layer, Recurrent)
    assert (layer.name, layer.source, layer.op, layer.groups) == ("s", "x", "GRU", 2)
    assert (layer.inputs, layer.hidden, layer.columns, layer.channels) == (INPUTS, HIDDEN, 13, 48)
    assert layer.rows().shape == (48, 13)


@pytest.mark.parametrize("kind", GATES)
def test_a_first_step_counts_where_its_state_is_known(kind: str, worker: Worker) -> None:
    proto = recurrent(kind)
    _, found = gathered(proto, samples(8), worker)
    assert found.fit.count == 6 * TIME * BATCH
    proto.graph.node[0].input.extend(["", "h"])
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((1, BATCH, HIDDEN), np.float32), "h"))
    _, found = gathered(proto, samples(8), worker)
    assert found.fit.count == 6 * (TIME - 1) * BATCH


@pytest.mark.parametrize(("fill", "first"), [(0, True), (1, False)])
@pytest.mark.parametrize("expanded", [True, False])
def test_an_initial_state_of_zeros_is_known(fill: int, first: bool, expanded: bool, worker: Worker) -> None:
    proto = recurrent("LSTM")
    proto.graph.node[0].input.extend(["", "h"])
    state = np.full((1, 1 if expanded else BATCH, HIDDEN), fill, np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(state, "e" if expanded else "h"))
    if expanded:
        proto.graph.initializer.append(numpy_helper.from_array(np.array([1, BATCH, HIDDEN]), "size"))
        proto.graph.node.insert(0, onnx.helper.make_node("Expand", ["e", "size"], ["h"]))
    _, found = gathered(proto, samples(8), worker)
    assert found.fit.count == 6 * (TIME - (not first)) * BATCH


def test_layers_that_share_their_weights_are_fitted_apart() -> None:
    """What one reads says nothing of the other: here the units that are left make up for others."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[{TIME},{BATCH},{INPUTS}] x) => (float[a,b,c] y)
        {{ n = Mul(x, k)  s = LSTM<hidden_size = {HIDDEN}>(x, w, r, b)  u = Squeeze(s, one)  m = MatMul(u, v)
        q = LSTM<hidden_size = {HIDDEN}, direction = "reverse">(n, w, r, b)  t = Squeeze(q, one)
        o = MatMul(t, z)  y = Add(m, o) }}"""
    )
    shared = recurrent("LSTM", copies=True).graph.initializer
    proto.graph.initializer.extend(one for one in shared if one.name != "shape")
    z = np.random.default_rng(1).standard_normal((HIDDEN, 4)).astype(np.float32)
    for name, one in {"z": z, "one": np.array([1]), "k": np.float32(-0.5)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(one), name))
    result = graphopt.optimize(proto, channels=0.5, data=samples(64), measure=False)
    after, feeds = serialized(result.model), samples(1, seed=9)[0]
    assert [one.attribute[0].i for one in after.graph.node if one.op_type == "LSTM"] == [4, 4]
    (old,), (new,) = compute(proto, feeds), compute(after, feeds)
    assert np.square(new - old).sum() < 1e-3 * np.square(old).sum()
