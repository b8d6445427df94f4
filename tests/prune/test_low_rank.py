"""A layer split into two: with the least error of its rank, and exactly the same layer at full rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.compress.low_rank import Spectrum
from graphopt_passes.compress.split import split
from graphopt_passes.refit.linear import Linear, linear_layers
from tests.support import compute, serialized

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def spectrum_of(outputs: np.ndarray, *, centred: bool = False) -> Spectrum:
    moments = outputs.T @ outputs / len(outputs)
    return Spectrum.of(moments, outputs.mean(axis=0) if centred else None)


def test_no_other_product_of_the_rank_loses_less() -> None:
    """Against the optimum from a Cholesky factor of the inputs' moments (SVD-LLM)."""
    x = normal(400, 20) @ normal(20, 20)
    w = normal(12, 20)
    spectrum = spectrum_of(x @ w.T)
    factors = spectrum.factors(w, 5)
    first, second = factors.first, factors.second
    root = np.linalg.cholesky(x.T.astype(np.float64) @ x)
    u, s, vt = np.linalg.svd(w @ root, full_matrices=False)
    best = (u[:, :5] * s[:5]) @ vt[:5] @ np.linalg.inv(root)
    np.testing.assert_allclose(second @ first, best, rtol=1e-5, atol=1e-5)
    lost = np.square(x @ (second @ first).T - x @ w.T).sum() / np.square(x @ w.T).sum()
    assert lost == pytest.approx(spectrum.error(5), rel=1e-3)


def test_the_bias_takes_back_the_mean() -> None:
    x = normal(300, 16) + 3
    w = normal(24, 16)
    y = x @ w.T
    plain, centred = spectrum_of(y), spectrum_of(y, centred=True)
    factors = centred.factors(w, 4)
    assert factors.shift is not None and plain.factors(w, 4).shift is None
    found = x @ (factors.second @ factors.first).T + factors.shift
    np.testing.assert_allclose(found.mean(axis=0), y.mean(axis=0), atol=1e-4)
    error = np.square(found - y).sum() / np.square(y).sum()
    assert error == pytest.approx(centred.error(4), rel=1e-3)
    assert error < plain.error(4)


def test_outputs_that_are_zero_lose_nothing() -> None:
    spectrum = spectrum_of(np.zeros((9, 3)))
    assert spectrum.error(1) == 0.0
    factors = spectrum.factors(np.zeros((3, 5), np.float32), 2)
    assert not (factors.second @ factors.first).any()


LAYERS = {
    "conv": (
        "g (float[N, 3, 9, 8] x) => (float[N, 5, 5, 7] y)"
        " { y = Conv <strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]> (x, w, b) }",
        {"w": (5, 3, 3, 2), "b": (5,)},
        (2, 3, 9, 8),
    ),
    "conv same": (
        "g (float[N, 3, 9] x) => (float[N, 5, 5] y) {"
        ' y = Conv <auto_pad = "SAME_UPPER", strides = [2], kernel_shape = [4]> (x, w) }',
        {"w": (5, 3, 4)},
        (2, 3, 9),
    ),
    "conv of one pixel": (
        "g (float[N, 6, 4, 4] x) => (float[N, 5, 4, 4] y) { y = Conv (x, w, b) }",
        {"w": (5, 6, 1, 1), "b": (5,)},
        (1, 6, 4, 4),
    ),
    "gemm": ("g (float[N, 6] x) => (float[N, 5] y) { y = Gemm (x, w, b) }", {"w": (6, 5), "b": (5,)}, (3, 6)),
    "gemm of one bias": (
        "g (float[N, 6] x) => (float[N, 5] y) { y = Gemm (x, w, b) }",
        {"w": (6, 5), "b": (1,)},
        (3, 6),
    ),
    "gemm turned": (
        "g (float[6, N] x) => (float[N, 5] y) { y = Gemm <transA = 1, transB = 1> (x, w) }",
        {"w": (5, 6)},
        (6, 3),
    ),
    "matmul": ("g (float[N, 2, 6] x) => (float[N, 2, 5] y) { y = MatMul (x, w) }", {"w": (6, 5)}, (3, 2, 6)),
    "matmul and add": (
        "g (float[N, 6] x) => (float[N, 5] y) { a = MatMul (x, w) y = Add (b, a) }",
        {"w": (6, 5), "b": (5,)},
        (3, 6),
    ),
}


def model_of(text: str, weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, shape in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(normal(*shape), name))
    return proto


@pytest.mark.parametrize(("text", "weights", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_a_split_of_full_rank_computes_the_same(
    text: str, weights: dict[str, tuple[int, ...]], shape: tuple[int, ...], worker: Worker
) -> None:
    proto = model_of(text, weights)
    model, run = Model.of(proto), Run(CPU, worker)
    (layer,) = linear_layers(model)
    assert isinstance(layer, Linear)
    spectrum = Spectrum.of(np.eye(layer.channels), None)
    shift = normal(layer.channels).astype(np.float64) if layer.can_shift else None
    factors = spectrum.factors(layer.rows(), layer.channels)
    split(layer, replace(factors, shift=shift), model, run)
    after = serialized(model)
    onnx.checker.check_model(after, full_check=True)
    feeds = {"x": normal(*shape)}
    (before,), (found,) = compute(proto, feeds), compute(after, feeds)
    if shift is not None:
        axis = 1 if layer.op == "Conv" else before.ndim - 1
        before = before + shift.reshape([-1 if i == axis else 1 for i in range(before.ndim)])
    np.testing.assert_allclose(found, before, rtol=1e-5, atol=1e-5)
    assert [node.op_type for node in model.ir.graph].count(layer.op) == 2
