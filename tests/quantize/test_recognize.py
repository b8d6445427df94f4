"""Quantized models are recognized, in the forms in which they come, and what is quantized stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.placement import Placement
from graphopt_passes.quantize.recognize import INTEGERS, PAIRS, WEIGHTS, recognize
from tests.traps.kit import model, normal

Q = np.arange(-32, 32).astype(np.int8).reshape(8, 8)
S, Z = np.float32(0.1), np.int8(0)
GRID = {"s": S, "z": Z}


def network(layer: str, **weights) -> onnx.ModelProto:
    """A quantized layer, and one on floats."""
    return model(
        f"g (float[n,8] x) => (float[n,8] y) {{ {layer} r = Relu(h) y = MatMul(r, w) }}",
        w=normal(8, 8),
        **weights,
    )


PAIR = "a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) v = DequantizeLinear(q, s, z)"
NETWORKS = {
    PAIRS: network(f"{PAIR} h = MatMul(b, v)", q=Q, **GRID),
    WEIGHTS: network("c = Cast<to = 1>(q) v = Mul(c, s) h = MatMul(x, v)", q=Q, s=S),
    INTEGERS: network(
        "a, t, o = DynamicQuantizeLinear(x) i = MatMulInteger(a, q, o) c = Cast<to = 1>(i) h = Mul(c, t)", q=Q
    ),
}


@pytest.mark.parametrize("style", NETWORKS)
def test_one_of_two_layers_is_quantized(style: str) -> None:
    found = recognize(Model.of(NETWORKS[style]).ir)
    assert found is not None
    assert (found.styles, found.layers, found.share) == ({style: 1}, 2, 0.5)
    assert str(found).startswith(f"1 of 2 layers were quantized before (1 by {style}")
    if style == PAIRS:
        assert found.operators == {"DequantizeLinear": 2, "QuantizeLinear": 1}


def test_weights_are_recognized_behind_views_and_zero_points() -> None:
    layer = """d = DequantizeLinear(q, s, z) u = Transpose(d) e = MatMul(x, u)
        c = Cast<to = 1>(q) o = Sub(c, k) m = Mul(o, s) v = Reshape(m, shape) h = MatMul(e, v)"""
    found = recognize(Model.of(network(layer, q=Q, k=np.float32(2), shape=np.array([8, 8]), **GRID)).ir)
    assert found is not None
    assert found.styles == {WEIGHTS: 2}


def test_a_layer_on_floats_whose_result_is_quantized_is_placed(worker: Worker) -> None:
    proto = network("c = MatMul(x, w) a = QuantizeLinear(c, s, z) h = DequantizeLinear(a, s, z)", **GRID)
    assert recognize(Model.of(proto).ir) is None
    assert "c" in Placement(Model.of(proto), Run(CPU, worker)).parts


def test_floats_are_not_quantized() -> None:
    assert recognize(Model.of(network("h = Sigmoid(x)")).ir) is None
    halves = network("c = Cast<to = 1>(q) h = MatMul(x, c)", q=normal(8, 8, dtype=np.float16))
    assert recognize(Model.of(halves).ir) is None


@pytest.mark.parametrize("style", NETWORKS)
def test_only_the_layer_on_floats_is_placed(worker: Worker, style: str) -> None:
    placement = Placement(Model.of(NETWORKS[style]), Run(CPU, worker))
    layers = [name for name, part in placement.parts.items() if part.kernel.role == "layer"]
    assert layers == ["y"]
    if style != INTEGERS:
        assert placement.refusals["h"] == "it is quantized already"
