"""Multiply-accumulates against numbers worked out by hand."""

from __future__ import annotations

import pytest
from onnx import parser

from graphopt import graph as g
from graphopt.cost import macs_of
from graphopt.model import Model
from graphopt.shapes.inference import Shapes

CASES = {
    "Conv": ("float[2,4,9,9] x, float[8,2,3,3] w", "Conv<group=2>(x, w)", 2 * 8 * 7 * 7 * 2 * 3 * 3),
    "ConvTranspose": ("float[1,4,5,5] x, float[4,3,2,2] w", "ConvTranspose(x, w)", 4 * 5 * 5 * 3 * 2 * 2),
    "MatMul": ("float[6,5,4] x, float[4,3] w", "MatMul(x, w)", 6 * 5 * 3 * 4),
    "Gemm": ("float[4,5] x, float[3,4] w", "Gemm<transA=1, transB=1>(x, w)", 5 * 3 * 4),
    "LSTM": (
        "float[7,2,3] x, float[1,20,3] w, float[1,20,5] r",
        "LSTM<hidden_size=5>(x, w, r)",
        7 * 2 * (20 * 3 + 20 * 5),
    ),
    "Einsum": ("float[2,3] x, float[3,4] w", 'Einsum<equation="ij, jk -> ik">(x, w)', 2 * 3 * 4),
    "Relu": ("float[2,3] x", "Relu(x)", 0),
    "unknown dim": ("float[N,4] x, float[4,3] w", "MatMul(x, w)", None),
    "unknown rank": ("float x, float[4,3] w", "MatMul(x, w)", None),
}


@pytest.mark.parametrize(("inputs", "call", "macs"), CASES.values(), ids=CASES.keys())
def test_macs(inputs: str, call: str, macs: int | None) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> m ({inputs}) => (y) {{ y = {call} }}'
    model = Model.of(parser.parse_model(text))
    node = next(iter(g.nodes(model.ir)))
    assert macs_of(node, Shapes.infer(model)) == macs
