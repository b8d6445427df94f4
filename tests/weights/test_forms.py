"""Every form computes what its integers stand for, and the runtime makes of it what is promised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.weights.blocks import Blocked, nearest
from graphopt_passes.weights.forms import Packed, Writer
from graphopt_passes.weights.places import Place, places
from tests.support import compute, ops, serialized

RNG = np.random.default_rng(0)


def build(text: str, opset: int = 21, **arrays: np.ndarray) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(data, name) for name, data in arrays.items())
    onnx.checker.check_model(proto)
    return proto


def normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


def found(model: Model, worker: Worker) -> dict[str, Place]:
    return {place.name: place for place in places(model, Run(CPU, worker))}


def rounded(
    proto: onnx.ModelProto, worker: Worker, bits: int, block: int, symmetric: bool | None = None
) -> tuple[dict[str, Blocked], onnx.ModelProto]:
    """Each weight's blocks, and the model with what these stand for."""
    blocks, exact = {}, onnx.ModelProto()
    exact.CopyFrom(proto)
    for name, place in found(Model.of(proto), worker).items():
        blocks[name] = nearest(place.rows(), bits, place.block(block), symmetric=symmetric)
        real = blocks[name].real().T if place.turned else blocks[name].real()
        tensor = next(one for one in exact.graph.initializer if one.name == name)
        tensor.CopyFrom(numpy_helper.from_array(real.reshape(tuple(tensor.dims)), name))
    return blocks, exact


def written(proto: onnx.ModelProto, blocks: Mapping[str, Blocked], form: str, worker: Worker) -> Model:
    model, run = Model.of(proto), Run(CPU, worker)
    writer = Writer(model, run)
    for name, place in {place.name: place for place in places(model, run)}.items():
        getattr(writer, form)(place, Packed.of(blocks[name], "nearest", run.spill))
    onnx.checker.check_model(serialized(model))
    return model


def run_with_integers(model: Model, feeds: Mapping[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(serialized(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


PRODUCTS = {
    "MatMul": ("g (float[2, M, 64] x) => (float[2, M, 96] y) { y = MatMul (x, w) }", {"w": (64, 96)}),
    "Gemm": (
        "g (float[M, 64] x) => (float[M, 96] y) { y = Gemm <transB = 1> (x, w, b) }",
        {"w": (96, 64), "b": (96,)},
    ),
    "Gemm without bias": ("g (float[M, 64] x) => (float[M, 96] y) { y = Gemm (x, w) }", {"w": (64, 96)}),
    "Gemm with an odd bias": (
        "g (float[M, 64] x) => (float[M, 96] y) { y = Gemm (x, w, b) }",
        {"w": (64, 96), "b": (1,)},
    ),
    "rows that no block divides": (
        "g (float[M, 75] x) => (float[M, 40] y) { y = MatMul (x, w) }",
        {"w": (75, 40)},
    ),
}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", PRODUCTS)
def test_a_product_in_each_form(case: str, bits: int, symmetric: bool, worker: Worker) -> None:
    text, shapes = PRODUCTS[case]
    proto = build(text, **{name: normal(*shape) for name, shape in shapes.items()})
    blocks, exact = rounded(proto, worker, bits, 32, symmetric)
    x = normal(3, shapes["w"][1] if "transB" in text else shapes["w"][0])
    feeds = {"x": np.stack([x, x]) if "[2, M" in text else x}
    [expected] = compute(exact, feeds)
    for form in ("decoded", "dequantized"):
        [result] = compute(serialized(written(proto, blocks, form, worker)), feeds)
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)
    model = written(proto, blocks, "kernels", worker)
    assert ops(model)["MatMulNBits"] == 1 and "MatMul" not in ops(model) and "Gemm" not in ops(model)
    [result] = run_with_integers(model, feeds)
    # The kernel rounds its inputs to int8, block by block: by half of 1/127 of the largest.
    np.testing.assert_allclose(result, expected, atol=0.02 * np.abs(expected).max())


def test_a_lookup_and_a_product_share_one_packed_table(worker: Worker) -> None:
    text = (
        "g (int64[B, S] i, float[B, S, 64] x) => (float[B, S, 64] e, float[B, S, 100] y)"
        " { e = Gather (w, i)  t = Transpose <perm = [1, 0]> (w)  y = MatMul (x, t) }"
    )
    proto = build(text, w=normal(100, 64))
    blocks, exact = rounded(proto, worker, 4, 32)
    feeds = {"i": np.array([[3, 99, -1]]), "x": normal(1, 3, 64)}
    model = written(proto, blocks, "kernels", worker)
    assert ops(model) == {"GatherBlockQuantized": 1, "Reshape": 1, "MatMulNBits": 1}
    assert model.file_size() < 0.3 * Model.of(proto).file_size()
    expected, result = compute(exact, feeds), run_with_integers(model, feeds)
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result[1], expected[1], atol=0.02 * np.abs(expected[1]).max())


STORED = {
    "Conv": (
        "g (float[1, 24, 9, 9] x) => (float[1, 16, 7, 7] y) { y = Conv (x, w) }",
        {"w": (16, 24, 3, 3)},
        (1, 24, 9, 9),
    ),
    "depthwise Conv": (
        "g (float[1, 256, 9, 9] x) => (float[1, 256, 7, 7] y) { y = Conv <group = 256> (x, w) }",
        {"w": (256, 1, 3, 3)},
        (1, 256, 9, 9),
    ),
    "ConvTranspose": (
        "g (float[1, 24, 5, 5] x) => (float[1, 16, 7, 7] y) { y = ConvTranspose (x, w) }",
        {"w": (24, 16, 3, 3)},
        (1, 24, 5, 5),
    ),
    "LSTM": (
        "g (float[5, 1, 32] x) => (float[5, 1, 1, 40] y) { y = LSTM <hidden_size = 40> (x, w, r) }",
        {"w": (1, 160, 32), "r": (1, 160, 40)},
        (5, 1, 32),
    ),
    "a weight on the left": (
        "g (float[64, 5] x) => (float[48, 5] y) { y = MatMul (w, x) }",
        {"w": (48, 64)},
        (64, 5),
    ),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", STORED)
def test_what_has_no_kernel_is_decoded_at_load(case: str, bits: int, worker: Worker, tmp_path: Path) -> None:
    text, shapes, size = STORED[case]
    proto = build(text, **{name: normal(*shape) for name, shape in shapes.items()})
    assert not any(place.computes(32) for place in found(Model.of(proto), worker).values())
    blocks, exact = rounded(proto, worker, bits, 32)
    assert set(blocks) == set(shapes)
    model = written(proto, blocks, "decoded", worker)
    feeds = {"x": normal(*size)}
    [expected], [result] = compute(exact, feeds), compute(serialized(model), feeds)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(serialized(model).SerializeToString(), options, ["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not left & {"Cast", "Sub", "Mul", "Reshape", "Transpose", "Slice"}


REFUSED = {
    "added": "g (float[64, 64] x) => (float[64, 64] y) { p = MatMul (x, w)  y = Add (p, w) }",
    "an output": "g (float[64, 64] x) => (float[64, 64] y, float[64, 64] w) { y = MatMul (x, w) }",
    "overridable": "g (float[64, 64] x, float[64, 64] w) => (float[64, 64] y) { y = MatMul (x, w) }",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_weight_that_somebody_else_may_need_is_no_place(case: str, worker: Worker) -> None:
    assert not found(Model.of(build(REFUSED[case], w=normal(64, 64))), worker)


def test_small_weights_and_kept_nodes_are_no_places(worker: Worker) -> None:
    text = "g (float[M, 64] x) => (float[M, 8] y) { p = MatMul (x, w)  y = MatMul (p, v) }"
    model = Model.of(build(text, w=normal(64, 64), v=normal(64, 8)))
    assert set(found(model, worker)) == {"w"}
    assert not list(places(model, Run(CPU, worker, keep=frozenset(["MatMul"]))))


def test_a_product_with_a_vector_has_no_kernel(worker: Worker) -> None:
    text = "g (float[64] x) => (float[64] y) { y = MatMul (x, w) }"
    [place] = found(Model.of(build(text, w=normal(64, 64))), worker).values()
    assert not place.computes(32)


def test_weights_of_branches_are_places(worker: Worker) -> None:
    text = (
        "g (bool c, float[2, 64] x) => (float[2, 64] y) { y = If (c) <"
        "then_branch = one () => (float[2, 64] p) { p = MatMul (x, w) },"
        "else_branch = two () => (float[2, 64] q) { s = MatMul (x, w) q = Neg (s) }> }"
    )
    proto = build(text, w=normal(64, 64))
    blocks, exact = rounded(proto, worker, 4, 32)
    model = written(proto, blocks, "kernels", worker)
    assert ops(model)["MatMulNBits"] == 2
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": normal(2, 64)}
        [expected], [result] = compute(exact, feeds), run_with_integers(model, feeds)
        np.testing.assert_allclose(result, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(("columns", "block"), [(147, 21), (64, 32), (9, 9), (131, 131), (24, 24)])
def test_rows_without_a_kernel_have_blocks_that_divide_them(columns: int, block: int, worker: Worker) -> None:
    text = f"g (float[{columns}, 5] x) => (float[1000, 5] y) {{ y = MatMul (w, x) }}"
    [place] = found(Model.of(build(text, w=normal(1000, columns))), worker).values()
    assert place.block(32) == block
