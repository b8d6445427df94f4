"""Fitted weights lower the error of their layers on what these saw; fitted biases take away its mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt import graph as g
from graphopt.activations import Collector
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize import fit
from graphopt_passes.quantize.fit import Fitted, fitted, nearest
from graphopt_passes.quantize.placement import Placement
from tests.support import compute, parse

LAYERS = {
    "Conv": ("y = Conv<pads = [1,1,1,1]>(x, w, b)", (2, 6, 5, 5), (8, 6, 3, 3)),
    "Conv without bias": ("y = Conv<strides = [2,2]>(x, w)", (2, 6, 5, 5), (8, 6, 3, 3)),
    "depthwise": ("y = Conv<group = 8>(x, w, b)", (2, 8, 5, 5), (8, 1, 3, 3)),
    "grouped": ("y = Conv<group = 2>(x, w, b)", (2, 6, 5, 5), (8, 3, 3, 3)),
    "1-D": ("y = Conv(x, w, b)", (2, 6, 9), (8, 6, 3)),
    "Gemm": ("y = Gemm(x, w, b)", (7, 12), (12, 8)),
    "turned Gemm": ("y = Gemm<transB = 1>(x, w, b)", (7, 12), (8, 12)),
    "Gemm of columns": ("y = Gemm<transA = 1>(x, w)", (12, 7), (12, 8)),
    "MatMul": ("a = MatMul(x, w)  y = Add(a, b)", (2, 7, 12), (12, 8)),
    "bare MatMul": ("y = MatMul(x, w)", (2, 7, 12), (12, 8)),
}


class Layer:
    """One layer, and samples of what it sees: channels of unlike sizes that depend on each other."""

    def __init__(self, kind: str, seed: int, worker: Worker) -> None:
        nodes, shape, weight_shape = LAYERS[kind]
        rng = np.random.default_rng(seed)
        dims = ",".join(map(str, shape))
        self.proto = _model(nodes, dims, len(shape), weight_shape, rng)
        self.model = Model.of(self.proto)
        self.placement = Placement(self.model, Run(CPU, worker))
        (self.name,) = self.placement.parts
        self.part = self.placement.parts[self.name]
        self.samples = [{"x": _inputs(shape, seed, rng)} for _ in range(24)]
        self.channels = 1 if self.part.node.op_type == "Conv" else -1
        self.collector = Collector(worker, threads=1)

    def fitted(self, bits: int = 8) -> Fitted:
        return fitted(self.model, self.placement, [self.name], self.collector, self.samples, bits)

    def errors(self, found: Fitted) -> Any:
        """Per channel, over all samples and positions: what the output changes by, [channels, many]."""
        weight = found.weights[self.name].real()
        changed = onnx.ModelProto()
        changed.CopyFrom(self.proto)
        changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
        bias = found.biases.get(self.name)
        old = g.array(self.part.bias)
        shift = 0.0 if bias is None else bias - (0.0 if old is None else old)
        errors = []
        for sample in self.samples:
            (x,), (y,) = compute(self.proto, sample), compute(changed, sample)
            error = np.moveaxis(y.astype(np.float64) - x, self.channels, -1)
            errors.append((error + shift).reshape(-1, error.shape[-1]))
        return np.concatenate(errors).T


def _model(nodes: str, dims: str, rank: int, weight_shape: tuple[int, ...], rng: Any) -> onnx.ModelProto:
    result = ",".join("pqrs"[:rank])
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    text = f"agraph (float[{dims}] x) => (float[{result}] y) {{ {nodes} }}"
    proto = onnx.parser.parse_model(f"{header} {text}")
    arrays = {"w": rng.standard_normal(weight_shape), "b": rng.standard_normal(8)}
    proto.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in arrays.items()
        if f", {name})" in nodes or f", {name}," in nodes
    )
    onnx.checker.check_model(proto)
    return proto


def _inputs(shape: tuple[int, ...], seed: int, rng: Any) -> Any:
    x = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape[-1]))
    x += 0.7 * x.mean(axis=1, keepdims=True) + seed % 3
    return (np.maximum(x, 0) if seed % 2 else x).astype(np.float32)


CASES = [(kind, seed) for kind in LAYERS for seed in range(3)]


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_fitted_layers_err_less(kind: str, seed: int, worker: Worker) -> None:
    """About their mean, which the bias takes: rounding alone has to do this."""
    layer = Layer(kind, seed, worker)
    plain = layer.errors(nearest(layer.placement, [layer.name], 8)).var(axis=1).sum()
    better = layer.errors(layer.fitted()).var(axis=1).sum()
    assert 0 < better < plain


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_fitted_biases_leave_no_mean_error(kind: str, seed: int, worker: Worker) -> None:
    layer = Layer(kind, seed, worker)
    found = layer.fitted(bits=4)
    errors = layer.errors(found)
    mean, spread = np.abs(errors.mean(axis=1)), errors.std(axis=1)
    if kind == "bare MatMul":  # has nowhere to put one
        assert not found.biases
    else:
        assert (mean < 1e-3 * spread).all()
        without = layer.errors(Fitted(found.weights))
        assert (np.abs(without.mean(axis=1)) > 100 * mean).any()


def test_fewer_bits_are_used(worker: Worker) -> None:
    found = Layer("Gemm", 0, worker).fitted(bits=7).weights["y"]
    assert np.abs(found.data.astype(int)).max() <= 63


def test_large_layers_are_rounded_to_nearest(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "MOST_COLUMNS", 11)
    layer = Layer("Gemm", 0, worker)
    found, plain = layer.fitted(), nearest(layer.placement, [layer.name], 8)
    np.testing.assert_array_equal(found.weights["y"].data, plain.weights["y"].data)
    assert not found.biases


def test_products_of_activations_have_nothing_to_fit(worker: Worker) -> None:
    proto = parse("agraph (float[4,4] x) => (float[4,4] y) { y = MatMul(x, x) }")
    model = Model.of(proto)
    placement = Placement(model, Run(CPU, worker))
    assert nearest(placement, ["y"], 8) == Fitted()


def test_layers_on_one_value_share_its_moments(worker: Worker) -> None:
    proto = parse(
        """agraph (float[4,2] x) => (float[4,2] y, float[4,2] z) <float[2,2] w = {1,2,3,4.1}>
        { y = Gemm(x, w)  z = MatMul(x, w) }"""
    )
    placement = Placement(model := Model.of(proto), Run(CPU, worker))
    samples = [{"x": np.random.default_rng(i).standard_normal((4, 2)).astype(np.float32)} for i in range(4)]
    collector = Collector(worker, threads=1)
    found = fitted(model, placement, ["y", "z"], collector, samples, 8)
    np.testing.assert_array_equal(found.weights["y"].data, found.weights["z"].data)
    assert set(found.biases) == {"y"}
