"""Layers read as y = W·x + b, and written back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.refit.linear import Linear, linear_layers
from graphopt_passes.refit.solve import Fit
from tests.support import compute, parse, serialized

CASES = {
    "conv": (
        "(float[n,4,6,6] x, float[6,2,3,3] w, float[6] b) => (float[n,6,h,v] y)",
        "y = Conv<group = 2>(x, w, b)",
    ),
    "conv without bias": ("(float[n,4,6,6] x, float[6,4,3,3] w) => (float[n,6,h,v] y)", "y = Conv(x, w)"),
    "gemm": ("(float[n,5] x, float[5,3] w, float[3] b) => (float[n,3] y)", "y = Gemm(x, w, b)"),
    "gemm turned": (
        "(float[n,5] x, float[3,5] w, float[1,1] b) => (float[n,3] y)",
        "y = Gemm<transB = 1>(x, w, b)",
    ),
    "gemm without bias": ("(float[n,5] x, float[5,3] w) => (float[n,3] y)", "y = Gemm(x, w)"),
    "matmul": ("(float[n,2,5] x, float[5,3] w) => (float[n,2,3] y)", "y = MatMul(x, w)"),
    "matmul and add": (
        "(float[n,2,5] x, float[5,3] w, float[3] b) => (float[n,2,3] y)",
        "p = MatMul(x, w) y = Add(b, p)",
    ),
    "matmul and one number": (
        "(float[n,2,5] x, float[5,3] w, float b) => (float[n,2,3] y)",
        "p = MatMul(x, w) y = Add(p, b)",
    ),
}


def build(signature: str, body: str) -> onnx.ModelProto:
    rng, proto = np.random.default_rng(0), parse(f"g {signature} {{ {body} }}")
    for value in list(proto.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        data = np.asarray(rng.standard_normal(shape), np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(data, value.name))
    del proto.graph.input[1:]
    return proto


def fed(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    shape = [dim.dim_value or 2 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}


def only(model: Model) -> Linear:
    (layer,) = linear_layers(model)
    assert isinstance(layer, Linear)
    return layer


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_and_written_is_the_same(case: str, worker: Worker) -> None:
    proto = build(*CASES[case])
    model = Model.of(proto)
    layer = only(model)
    layer.write(model, Run(CPU, worker), layer.fit())
    np.testing.assert_array_equal(compute(serialized(model), fed(proto))[0], compute(proto, fed(proto))[0])


@pytest.mark.parametrize("case", CASES)
def test_another_weight_and_bias(case: str, worker: Worker) -> None:
    """2·W and b + c: outputs follow, wherever the bias is."""
    proto, feeds = build(*CASES[case]), fed(build(*CASES[case]))
    model = Model.of(proto)
    layer = only(model)
    assert layer.can_shift == (case != "matmul")
    fit = layer.fit()
    shift = np.arange(layer.channels) if layer.can_shift else np.zeros(layer.channels)
    layer.write(model, Run(CPU, worker), Fit(2 * fit.rows, fit.bias + shift.reshape(fit.bias.shape)))
    after = serialized(model)
    onnx.checker.check_model(after)
    bias = [one for one in proto.graph.initializer if one.name == "b"]
    added = numpy_helper.to_array(bias[0]) if bias else np.zeros(1, np.float32)
    if layer.op == "Conv":
        added, shift = (np.reshape(one, (-1, 1, 1)) for one in (added, shift))
    expected = 2 * (compute(proto, feeds)[0] - added) + added + shift
    np.testing.assert_allclose(compute(after, feeds)[0], expected, rtol=2e-6, atol=2e-6)
    assert only(model).name == layer.name
    assert {one.name for one in after.graph.initializer} >= {"w"}


REFUSED = {
    "is used elsewhere": (
        "(float[n,5] x, float[5,5] w) => (float[n,5] y)",
        "p = MatMul(x, w) y = MatMul(p, w)",
    ),
    "scales its weight": ("(float[n,5] x, float[5,3] w) => (float[n,3] y)", "y = Gemm<alpha = 2.0>(x, w)"),
    "has rank 3": ("(float[2,4,5] x, float[2,5,3] w) => (float[2,4,3] y)", "y = MatMul(x, w)"),
    "no constant weight": ("(float[n,5,5] x) => (float[n,5,5] y)", "y = MatMul(x, x)"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_fitted_is_refused(reason: str) -> None:
    for found in linear_layers(Model.of(build(*REFUSED[reason]))):
        assert not isinstance(found, Linear)
        assert reason in found[1]
