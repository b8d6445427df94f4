"""Layers fitted in order make up for the errors of the rounded layers before them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt.runtime.pairs import Sums
from graphopt_passes.refit.solve import Fit, Problem
from graphopt_passes.weights.in_order import RIDGE, made_up
from graphopt_passes.weights.rounds import Rounder
from tests.support import compute, serialized

RNG = np.random.default_rng(0)


def sums(x: np.ndarray, y: np.ndarray) -> Sums:
    found = Sums.zeros(1, x.shape[1], y.shape[1])
    found.take(x[None].astype(np.float32), y[None].astype(np.float32))
    return found


def problem(w: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray, *, shifts: bool = False) -> Problem:
    return Problem.of(sums(x, y), Fit(w[None], b[None]), shifts=shifts)


def test_with_the_inputs_of_the_float_model_nothing_is_to_be_made_up_for() -> None:
    w, b, x = RNG.standard_normal((6, 16)), RNG.standard_normal(6), RNG.standard_normal((200, 16))
    for shifts in (True, False):
        found = made_up(problem(w, b, x, x @ w.T + b, shifts=shifts))
        np.testing.assert_allclose(found, w, atol=1e-5)


@pytest.mark.parametrize("rows", [40, 500])
def test_the_weight_is_the_minimum_that_the_ridge_pulls_back(rows: int) -> None:
    w, x = RNG.standard_normal((6, 16)), RNG.standard_normal((rows, 16))
    seen = x + 0.3 * RNG.standard_normal(x.shape) + 0.2 * x[:, ::-1]
    found = made_up(problem(w, np.zeros(6), seen, x @ w.T))

    def loss(tried: np.ndarray) -> float:
        pull = RIDGE * np.square(seen).sum() / 16
        return float(np.square(seen @ tried.T - x @ w.T).sum() + pull * np.square(tried - w).sum())

    assert loss(found) < 0.99 * loss(w)
    assert all(loss(found) <= loss(found + 1e-2 * RNG.standard_normal(w.shape)) for _ in range(20))


def test_rows_with_zeros_stay() -> None:
    w, x = RNG.standard_normal((6, 16)), RNG.standard_normal((200, 16))
    w[2, 5] = 0
    found = made_up(problem(w, np.zeros(6), 1.2 * x, x @ w.T))
    np.testing.assert_array_equal(found[2], w[2])
    assert (np.abs(found - w)[[0, 1, 3, 4, 5]] > 0).all()


def stack(depth: int, width: int) -> onnx.ModelProto:
    """Products with Tanh between them."""
    names = ["x", *(f"h{index}" for index in range(depth - 1)), "y"]
    lines = [
        f"p{index} = MatMul ({names[index]}, w{index}) {names[index + 1]} = Tanh (p{index})"
        for index in range(depth)
    ]
    text = f"g (float[M, {width}] x) => (float[M, {width}] y) {{ {' '.join(lines)} }}"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for index in range(depth):
        w = (RNG.standard_normal((width, width)) / width**0.5).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(w, f"w{index}"))
    return proto


def test_a_deep_stack_has_less_noise_than_fitted_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stack(6, 64)
    mixing = RNG.standard_normal((64, 64)) * RNG.random(64)
    data = [{"x": (RNG.standard_normal((32, 64)) @ mixing).astype(np.float32)} for _ in range(32)]

    def noise() -> float:
        options: dict[str, Any] = {
            "measure": False,
            "threads": 1,
            "max_drop": "90%",
            "rounding": "gptq",
            "data": data,
        }
        report = graphopt.optimize(model, precision="int4-weights", **options).report
        assert {layer.method for layer in report.layers} == {"gptq"}
        assert report.accuracy is not None and report.accuracy.after.sqnr_db is not None
        return report.accuracy.after.sqnr_db

    in_order = noise()
    monkeypatch.setattr(Rounder, "_in_order", lambda *_: iter(()))
    assert in_order > noise() + 0.3


@pytest.mark.parametrize("layer", ["Gemm (x, w)", "Gemm (x, w, b)", "MatMul (x, w) y = Add (p, b)"])
def test_the_bias_takes_what_is_missing_of_the_mean(layer: str) -> None:
    """Inputs far from zero, so that all errors of rounding point one way."""
    last = "p" if "Add" in layer else "y"
    text = f"g (float[M, 64] x) => (float[M, 64] y) {{ {last} = {layer} }}"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, shape in (("w", (64, 64)), ("b", (64,))):
        if name in layer:
            data = RNG.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(data, name))
    data = [{"x": (RNG.standard_normal((32, 64)) + 2).astype(np.float32)} for _ in range(16)]
    found = graphopt.optimize(
        proto, precision="int4-weights", rounding="gptq", data=data, max_drop="90%", measure=False, threads=1
    )
    assert {row.method for row in found.report.layers} == {"gptq"}
    after = serialized(found.model)
    missing = [compute(after, one)[0] - compute(proto, one)[0] for one in data]
    noise = np.concatenate(missing)
    assert np.sqrt(np.square(noise.mean(axis=0)).mean()) < 0.1 * noise.std()
