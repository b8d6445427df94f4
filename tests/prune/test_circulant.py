"""--circulant: transforms that multiply as the matrix does, the closest matrix, and layers written so."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt_passes.compress.block_circulant import Transform, expand, project
from tests.support import compute, ops, serialized

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_components_multiply_as_the_matrix_does(size: int) -> None:
    transform = Transform.of(size)
    assert transform.forward.shape == (size, max(2 * size - 2, 2))
    c, x = RNG.standard_normal((3, 5, size)), RNG.standard_normal((7, 5, size))
    weights = np.einsum("kt,pqt->kpq", transform.weights, c)
    components = x @ transform.forward
    products = np.einsum("nqk,kpq->npk", components, weights)
    found = (products @ transform.backward).reshape(7, -1)
    np.testing.assert_allclose(found, x.reshape(7, -1) @ expand(c, size).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_circulant_matrix_is_found_again(size: int) -> None:
    c = RNG.standard_normal((3, 2, size))
    weight = expand(c, size)
    x = RNG.standard_normal((200, weight.shape[1]))
    for moments in (None, x.T @ x):
        np.testing.assert_allclose(project(weight, size, moments), c, rtol=1e-5, atol=1e-5)


def test_no_other_blocks_are_closer_on_the_inputs() -> None:
    weight = RNG.standard_normal((8, 12))
    x = RNG.standard_normal((300, 12)) @ RNG.standard_normal((12, 12))
    moments = x.T @ x
    best = project(weight, 4, moments)

    def error(numbers: np.ndarray) -> float:
        return float(np.square(x @ (expand(numbers, 4) - weight).T).sum())

    assert error(best) < error(project(weight, 4, None))
    for _ in range(20):
        assert error(best) <= error(best + 1e-3 * RNG.standard_normal(best.shape))


LAYERS = {
    "gemm": ("float[N, 64] x", "y = Gemm (x, w, b)", (5, 64), False),
    "gemm turned": ("float[N, 64] x", "y = Gemm <transB = 1> (x, w, b)", (5, 64), True),
    "matmul": ("float[N, 3, 64] x", "y = MatMul (x, w)", (2, 3, 64), False),
    "matmul of many": ("float[N, 2, 3, 64] x", "a = MatMul (x, w)  y = Add (a, b)", (4, 2, 3, 64), False),
}


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize(("given", "text", "shape", "turned"), LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_that_is_circulant_computes_the_same(
    given: str, text: str, shape: tuple[int, ...], turned: bool, size: int
) -> None:
    dims = ", ".join(["N", *map(str, shape[1:-1]), "128"])
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({given}) => (float[{dims}] y) {{ {text} }}'
    )
    matrix = expand(RNG.standard_normal((128 // size, 64 // size, size)), size).astype(np.float32)
    weights = {"w": matrix if turned else matrix.T, "b": RNG.standard_normal(128).astype(np.float32)}
    for name, data in weights.items():
        if f"{name})" in text or f"{name}," in text:
            proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(data), name))
    result = graphopt.optimize(proto, circulant=size, measure=False)
    after = serialized(result.model)
    onnx.checker.check_model(after, full_check=True)
    assert ops(result.model)["Transpose"] == 2
    assert [layer.kept for layer in result.report.pruned] == [f"blocks of {size}"]
    assert result.report.pruned[0].error is not None and result.report.pruned[0].error < 1e-9
    feeds = {"x": RNG.standard_normal(shape).astype(np.float32)}
    (before,), (found,) = compute(proto, feeds), compute(after, feeds)
    np.testing.assert_allclose(found, before, rtol=2e-5, atol=2e-5)
    assert result.model.file_size() < 4 * (128 * 64 / size + 2000) + 3000


def test_what_it_costs_is_told_and_refusals_have_reasons() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 10] y)'
        " { a = MatMul (x, w)  y = MatMul (a, v) }"
    )
    for name, shape in (("w", (64, 128)), ("v", (128, 10))):
        data = RNG.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(data, name))
    report = graphopt.optimize(proto, circulant=8, measure=False).report
    rows = {layer.name: layer for layer in report.pruned}
    assert rows["a"].kept and rows["a"].error is not None and rows["a"].error > 0.5
    assert "too few" in rows["y"].reason
    assert report.accuracy is not None and report.accuracy.budget == "none"


def test_a_vector_is_not_multiplied_so() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[64] x) => (float[64] y) { y = MatMul (x, w) }'
    )
    weight = RNG.standard_normal((64, 64)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    found = graphopt.optimize(proto, circulant=4, objective="macs", measure=False).report
    assert [row.reason for row in found.pruned] == ["its input is a vector"]
