"""quantize-dynamic: integers within their noise, in ONNX Runtime's kernels, or a reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from graphopt.interface import Interface, notices
from graphopt.journal import Journal
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.proof.executed import Executed
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.audit import audit
from graphopt_passes.quantize.dynamic import QuantizeDynamic, quantize
from tests.support import compute, run_passes, serialized

Floats = NDArray[np.float32]
KERNELS = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM", "QAttention")


def drawn(*shape: int, seed: int = 0) -> Floats:
    """Normal numbers, the channels of very different size."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) * np.geomspace(0.1, 1.0, shape[-1])).astype(np.float32)


def model(graph: str, opset: int = 17, functions: str = "", **weights: Any) -> onnx.ModelProto:
    """A model in text with these initializers."""
    imports = f'"" : {opset}, "com.microsoft" : 1' + (', "local" : 1' if functions else "")
    proto = parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> {graph} {functions}")
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items())
    return proto


def sqnr(expected: Floats, found: Floats) -> float:
    """Signal over noise, in dB."""
    noise = np.square(found.astype(np.float64) - expected).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / max(noise, 1e-30)))


def kernels(quantized: Model, worker: Worker) -> Counter[str]:
    """The kernels that compute on integers, and the operators that should not be left of them."""
    executed = Executed.of(quantized, worker=worker, threads=1)
    assert audit(executed).green
    left = ("MatMulInteger", "MatMul", "Gemm", "FusedGemm", "LSTM", "Attention", "Cast")
    return Counter(node.op_type for node in executed.nodes() if node.op_type in (*KERNELS, *left))


W, V, B = drawn(64, 96), drawn(96, 64, seed=1), drawn(96, seed=2)
BIG_LSTM = {"w": drawn(2, 256, 80) / 9, "r": drawn(2, 256, 64, seed=1) / 9, "b": drawn(2, 512, seed=2)}
ROWS = "float[N, 5, 64] x"
CASES: dict[str, tuple[onnx.ModelProto, dict[str, int]]] = {
    "MatMul": (
        model(f"g ({ROWS}) => (float[N, 5, 96] y) {{ y = MatMul (x, w) }}", w=W),
        {"DynamicQuantizeMatMul": 1},
    ),
    "MatMul-bias": (
        model(f"g ({ROWS}) => (float[N, 5, 96] y) {{ a = MatMul (x, w) y = Add (b, a) }}", w=W, b=B),
        {"DynamicQuantizeMatMul": 1},
    ),
    "MatMul-of-a-vector": (
        model("g (float[64] x) => (float[96] y) { y = MatMul (x, w) }", w=W),
        {"DynamicQuantizeMatMul": 1},
    ),
    "MatMul-shared-input": (
        model(
            f"g ({ROWS}) => (float[N, 5, 96] y)"
            " { p = MatMul (x, w) q = MatMul (x, v) r = Mul (p, q) y = Add (r, b) }",
            w=W,
            v=drawn(64, 96, seed=5),
            b=B,
        ),
        {"MatMulIntegerToFloat": 2},
    ),
    "MatMul-shared-weight": (
        model(
            f"g ({ROWS}) => (float[N, 5, 96] y) {{ t = Tanh (x) p = MatMul (x, w) q = MatMul (t, w)"
            " y = Add (p, q) }",
            w=W,
        ),
        {"DynamicQuantizeMatMul": 2},
    ),
    "Gemm": (
        model("g (float[N, 64] x) => (float[N, 96] y) { y = Gemm (x, w, b) }", w=W, b=B),
        {"DynamicQuantizeMatMul": 1},
    ),
    "Gemm-transposed": (
        model(
            "g (float[N, 64] x) => (float[N, 96] y)"
            " { y = Gemm <transB = 1, alpha = -0.5, beta = 2.0> (x, w, b) }",
            w=np.ascontiguousarray(W.T),
            b=B,
        ),
        {"DynamicQuantizeMatMul": 1},
    ),
    "Gemm-opset-9": (
        model("g (float[N, 64] x, float[96] b) => (float[N, 96] y) { y = Gemm (x, w, b) }", 9, w=W),
        {"DynamicQuantizeMatMul": 1},
    ),
    "LSTM": (
        model(
            "g (float[7, N, 80] x) => (float[7, 2, N, 64] y, float[2, N, 64] h, float[2, N, 64] c)"
            ' { y, h, c = LSTM <hidden_size = 64, direction = "bidirectional"> (x, w, r, b) }',
            **BIG_LSTM,
        ),
        {"DynamicQuantizeLSTM": 1},
    ),
    "LSTM-states": (
        model(
            "g (float[7, N, 80] x, float[1, N, 64] i, float[1, N, 64] j) => (float[1, N, 64] h)"
            ' { , h = LSTM <hidden_size = 64, clip = 3.0, direction = "reverse"> (x, w, r, , , i, j) }',
            w=BIG_LSTM["w"][:1],
            r=BIG_LSTM["r"][:1],
        ),
        {"DynamicQuantizeLSTM": 1},
    ),
    "Attention": (
        model(
            "g (float[N, 5, 64] x, int32[N, 5] m) => (float[N, 5, 32] y)"
            " { y = com.microsoft.Attention <num_heads = 4> (x, w, b, m) }",
            w=W,
            b=B,
        ),
        {"QAttention": 1},
    ),
    "in-branches": (
        model(
            f"g (bool k, {ROWS}) => (float[N, 5, 96] y) {{ y = If (k) <"
            "then_branch = t () => (float[N, 5, 96] p) { p = MatMul (x, w) },"
            "else_branch = e () => (float[N, 5, 96] q) { s = Neg (x) q = MatMul (s, w) }> }",
            w=W,
        ),
        {"DynamicQuantizeMatMul": 2},
    ),
}


def feeds_of(proto: onnx.ModelProto, seed: int, n: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for index, value in enumerate(proto.graph.input):
        shape = [dim.dim_value or n for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        rng = np.random.default_rng([seed, index])
        made[value.name] = (rng.standard_normal(shape) if dtype.kind == "f" else np.ones(shape)).astype(dtype)
    return made


@pytest.mark.parametrize("case", CASES)
def test_results_are_near_and_kernels_are_integers(case: str, worker: Worker) -> None:
    proto, wanted = CASES[case]
    quantized, run = run_passes(proto, QuantizeDynamic(), worker=worker)
    assert kernels(quantized, worker) == wanted
    assert sum(rewrite.rule == "quantize-dynamic" for rewrite in run.journal.rewrites) == sum(wanted.values())
    for seed, n in ((0, 1), (1, 3)):
        feeds = feeds_of(proto, seed, n)
        for old, new in zip(compute(proto, feeds), compute(serialized(quantized), feeds), strict=True):
            assert old.shape == new.shape
            assert sqnr(old, new) > 30


def test_the_else_branch_is_as_near(worker: Worker) -> None:
    proto, _ = CASES["in-branches"]
    quantized, _ = run_passes(proto, QuantizeDynamic(), worker=worker)
    feeds = {**feeds_of(proto, 3, 2), "k": np.array(False)}
    assert sqnr(compute(proto, feeds)[0], compute(serialized(quantized), feeds)[0]) > 30


def test_integers_are_those_of_the_arithmetic(worker: Worker) -> None:
    """On a grid that both operands lie on exactly, nothing is lost."""
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (64, 96)).astype(np.float32)
    w[0] = 127
    x = rng.integers(0, 256, (3, 64)).astype(np.float32)
    x[0, :2] = 0, 255
    proto = model("g (float[N, 64] x) => (float[N, 96] y) { y = MatMul (x, w) }", w=w)
    quantized, _ = run_passes(proto, QuantizeDynamic(), worker=worker)
    np.testing.assert_array_equal(compute(serialized(quantized), {"x": x})[0], x @ w)


def test_channels_have_scales_of_their_own(worker: Worker) -> None:
    w = drawn(64, 96)
    w[:, 0] *= 1000
    proto = model("g (float[N, 64] x) => (float[N, 96] y) { y = MatMul (x, w) }", w=w)
    quantized, _ = run_passes(proto, QuantizeDynamic(), worker=worker)
    feeds = feeds_of(proto, 0, 4)
    [old], [new] = compute(proto, feeds), compute(serialized(quantized), feeds)
    assert sqnr(old[:, 1:], new[:, 1:]) > 30


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "two-activations": (
        model("g (float[8, 64] x, float[64, 96] z) => (float[8, 96] y) { y = MatMul (x, z) }"),
        "its input 1 is no constant",
    ),
    "overridable": (
        model(
            "g (float[8, 64] x, float[64, 96] w) => (float[8, 96] y) { y = MatMul (x, w) }",
            w=W,
        ),
        "its input 1 is no constant",
    ),
    "double": (
        model("g (double[8, 64] x) => (double[8, 96] y) { y = MatMul (x, w) }", w=W.astype(np.float64)),
        "its weight is DOUBLE",
    ),
    "batched": (
        model("g (float[2, 8, 64] x) => (float[2, 8, 96] y) { y = MatMul (x, w) }", w=np.stack([W, W])),
        "its weight has rank 3, not 2",
    ),
    "small": (
        model("g (float[8, 4] x) => (float[8, 3] y) { y = MatMul (x, w) }", w=drawn(4, 3)),
        "its weight of 12 elements is too small to pay",
    ),
    "infinite": (
        model(
            "g (float[8, 64] x) => (float[8, 96] y) { y = MatMul (x, w) }", w=np.full((64, 96), np.inf, "f")
        ),
        "its weight holds NaN or infinity",
    ),
    "overflow": (
        model("g (float[1, 70000] x) => (float[1, 1] y) { y = MatMul (x, w) }", w=np.ones((70000, 1), "f")),
        "its sums may exceed 32 bits",
    ),
    "Gemm-transA": (
        model("g (float[64, 8] x) => (float[8, 96] y) { y = Gemm <transA = 1> (x, w) }", w=W),
        "its input is transposed",
    ),
    "Gemm-beta": (
        model("g (float[8, 64] x, float[96] c) => (float[8, 96] y) { y = Gemm <beta = 2.0> (x, w, c) }", w=W),
        "it scales a bias that is no constant",
    ),
    "LSTM-layout": (
        model(
            "g (float[2, 7, 80] x) => (float[2, 7, 1, 64] y)"
            " { y = LSTM <hidden_size = 64, layout = 1> (x, w, r) }",
            w=BIG_LSTM["w"][:1],
            r=BIG_LSTM["r"][:1],
        ),
        "its layout is batch first",
    ),
    "GRU": (
        model(
            "g (float[7, 2, 80] x) => (float[7, 1, 2, 64] y) { y = GRU <hidden_size = 64> (x, w, r) }",
            w=BIG_LSTM["w"][:1, :192],
            r=BIG_LSTM["r"][:1, :192],
        ),
        "ONNX Runtime has no integer kernel for GRU",
    ),
    "Attention-widths": (
        model(
            "g (float[2, 5, 64] x) => (float[2, 5, 32] y)"
            " { y = com.microsoft.Attention <num_heads = 4, qkv_hidden_sizes = [32, 32, 32]> (x, w, b) }",
            w=W,
            b=B,
        ),
        "QAttention has no qkv_hidden_sizes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_nodes_stay_as_they_are(case: str, worker: Worker) -> None:
    proto, reason = REFUSED[case]
    before = serialized(Model.of(proto)).SerializeToString()
    after, run = run_passes(proto, QuantizeDynamic(), worker=worker)
    assert [refusal.reason for refusal in run.journal.refusals] == [reason]
    assert serialized(after).SerializeToString() == before


TWO = f"g ({ROWS}) => (float[N, 5, 64] y) {{ a = MatMul (x, w) t = Tanh (a) y = MatMul (t, v) }}"


def test_only_the_nodes_that_are_named(worker: Worker) -> None:
    proto = model(TWO, w=W, v=V)
    after, run = run_passes(proto, QuantizeDynamic(nodes="y"), worker=worker)
    assert kernels(after, worker) == {"MatMul": 1, "DynamicQuantizeMatMul": 1}
    assert [rewrite.value for rewrite in run.journal.rewrites] == ["y"]
    assert {"w"} < set(after.ir.graph.initializers) and "v" not in after.ir.graph.initializers


def test_it_says_what_it_quantized_and_can_be_left_out(worker: Worker) -> None:
    proto = model(TWO, w=W, v=V)
    assert quantize(Model.of(proto), Run(CPU, worker)) == ["a", "y"]
    assert quantize(Model.of(proto), Run(CPU, worker), ["y"]) == ["y"]
    assert quantize(Model.of(proto), Run(CPU, worker, Journal(limit=1))) == ["a"]
    assert quantize(Model.of(proto), Run(CPU, worker, keep=frozenset({"MatMul"}))) == []


def test_a_second_run_changes_nothing(worker: Worker) -> None:
    after, _ = run_passes(model(TWO, w=W, v=V), QuantizeDynamic(), worker=worker)
    assert not QuantizeDynamic().apply(after, Run(CPU, worker))


def test_models_of_old_opsets_are_raised_only_if_something_is_quantized(worker: Worker) -> None:
    conv = "g (float[1, 2, 9, 9] x) => (float[1, 2, 7, 7] y) { y = Conv (x, w) }"
    for graph, opset, weight in ((conv, 9, drawn(2, 2, 3, 3)), (TWO, 11, W)):
        proto = model(graph, 9, w=weight, **({"v": V} if opset == 11 else {}))
        after, _ = run_passes(proto, QuantizeDynamic(), worker=worker)
        assert after.ir.opset_imports[""] == opset


def test_the_domain_of_kernels_is_added_where_it_is_needed(worker: Worker) -> None:
    proto, _ = CASES["LSTM"]
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    del plain.opset_import[1:]
    after, _ = run_passes(plain, QuantizeDynamic(), worker=worker)
    assert notices(Interface.of(plain), Interface.of(after)) == [
        "opset 1 of domain 'com.microsoft' was added"
    ]


def test_functions_are_left_alone(worker: Worker) -> None:
    body = "f (a) => (b) { w = Constant <value = float[1, 1] {2.0}> () b = MatMul (a, w) }"
    proto = model(
        "g (float[8, 1] x) => (float[8, 1] y) { y = local.f (x) }",
        functions=f'<domain: "local", opset_import: ["" : 17]> {body}',
    )
    after, run = run_passes(proto, QuantizeDynamic(), worker=worker)
    assert not run.journal.rewrites
    assert [node.op_type for node in after.ir.graph] == ["f"]
