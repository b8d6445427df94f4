"""--sparsity of LSTM, GRU and RNN: W and R have zeros, chosen and made up for by what the steps read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from tests.support import compute, serialized

TIME, INPUTS, HIDDEN = 12, 16, 24
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "bidirectional": 2}


def build(op: str, direction: str = "forward", outputs: str = "q") -> onnx.ModelProto:
    """A dense layer in front, and one behind, so that the recurrent one is no end."""
    ways, rows = DIRECTIONS[direction], GATES[op] * HIDDEN
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{TIME},n,{INPUTS}] x) => (float[a,b,c,d] y) {{ p = MatMul(x, f)
        {outputs} = {op}<hidden_size = {HIDDEN}, direction = "{direction}">(p, w, r, b)
        y = MatMul(q, v) }}"""
    )
    rng = np.random.default_rng(0)
    shapes = {"w": (ways, rows, INPUTS), "r": (ways, rows, HIDDEN), "b": (ways, 2 * rows)}
    for name, shape in {**shapes, "f": (INPUTS, INPUTS), "v": (HIDDEN, 8)}.items():
        data = rng.standard_normal(shape) / np.sqrt(shape[-1])
        proto.graph.initializer.append(numpy_helper.from_array(data.astype(np.float32), name))
    return proto


def sequences(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Inputs that say much the same as each other, with a mean."""
    rng, mixed = np.random.default_rng(seed), np.random.default_rng(1).standard_normal((INPUTS, INPUTS))
    return [
        {"x": (rng.standard_normal((TIME, 3, INPUTS)) @ mixed / 4 + 0.3).astype(np.float32)}
        for _ in range(count)
    ]


def pruned(proto: onnx.ModelProto, sparsity: float | str, **options: Any) -> graphopt.Result:
    given = {"measure": False, "threads": 1, "data": sequences(48, 1), **options}
    return graphopt.optimize(proto, sparsity=sparsity, **given)


def weights(result: graphopt.Result) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in serialized(result.model).graph.initializer}


def noise(proto: onnx.ModelProto, result: graphopt.Result) -> float:
    """Noise beside the outputs, on sequences that nothing was fitted to."""
    lost, size = 0.0, 0.0
    for feeds in sequences(6, 9):
        (expected,), (found,) = compute(proto, feeds), compute(serialized(result.model), feeds)
        lost, size = lost + np.square(found - expected).sum(), size + np.square(expected).sum()
    return float(lost / size)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_what_is_left_makes_up_for_what_goes(op: str, direction: str) -> None:
    proto = build(op, direction)
    fitted, plain = pruned(proto, 0.5), pruned(proto, 0.5, select="l2", refit=False)
    for result in (fitted, plain):
        found = weights(result)
        layers = [found[name] for name in "wrfv"]
        zeros, total = sum((one == 0).sum() for one in layers), sum(one.size for one in layers)
        assert zeros / total == pytest.approx(0.5, abs=0.01)
        assert (found["r"] == 0).mean() > 0.2
    assert noise(proto, fitted) < 0.5 * noise(proto, plain)


def test_groups_of_four_lie_along_each_of_both_weights() -> None:
    found = weights(pruned(build("LSTM"), "2:4"))
    for name in "wr":
        assert ((found[name].reshape(-1, 4) != 0).sum(axis=1) <= 2).all()
    assert (found["f"] != 0).all() and (found["v"] != 0).all()  # the ends


def test_without_samples_the_largest_weights_stay() -> None:
    proto = build("GRU")
    found, (given,) = (
        weights(pruned(proto, 0.5, data=None)),
        [numpy_helper.to_array(one) for one in proto.graph.initializer if one.name == "r"],
    )
    gone = found["r"] == 0
    assert 0.2 < gone.mean() < 0.8
    assert np.abs(given[gone]).max() <= np.abs(given[~gone]).min()


def test_a_layer_of_which_only_the_last_state_is_given_says_so() -> None:
    proto = build("LSTM", outputs="s, q")
    proto.graph.node[1].output[0] = ""
    (row,) = [one for one in pruned(proto, 0.5).report.pruned if one.op == "LSTM"]
    assert not row.kept and "does not give its states step by step" in row.reason


def test_constants_that_are_not_finite_stay() -> None:
    proto = build("RNN")
    proto.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((1, HIDDEN, INPUTS), np.inf, np.float32), "w")
    )
    (row,) = [one for one in pruned(proto, 0.5, data=None).report.pruned if one.op == "RNN"]
    assert not row.kept and "holds NaN or infinity" in row.reason
