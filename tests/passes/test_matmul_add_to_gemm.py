"""matmul-add-to-gemm: matrices only, and only what ONNX Runtime's Gemm computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.worker import Worker
from graphopt_passes.fuse.matmul_add_to_gemm import MatMulAddToGemm
from tests.support import assert_same, ops, parse, run_passes


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.tuples(*[st.integers(1, 5)] * 3),
    st.sampled_from(["float", "double"]),
    st.sampled_from(["", "1", "n", "1,n", "m,n", "m,1"]),
    st.booleans(),
)
def test_small_integers_come_out_exactly(
    worker: Worker, sizes: tuple[int, int, int], dtype: str, bias: str, turned: bool
) -> None:
    m, k, n = sizes
    shape = bias.replace("m", str(m)).replace("n", str(n))
    operands = "c, p" if turned else "p, c"
    c = f"{dtype}[{shape}] c" if shape else f"{dtype} c"
    proto = parse(f"""g ({dtype}[{m},{k}] a, {dtype}[{n},{k}] b, {c}) => ({dtype}[{m},{n}] y)
      {{ t = Transpose(b) p = MatMul(a, t) y = Add({operands}) }}""")
    model, _ = run_passes(proto, MatMulAddToGemm(), worker=worker)
    assert ops(model) == {"Gemm": 1}
    kind = np.float64 if dtype == "double" else np.float32
    rng = np.random.default_rng(m + 10 * k + 100 * n)
    shapes = {"a": (m, k), "b": (n, k), "c": tuple(int(d) for d in shape.split(",") if d)}
    feeds = {name: rng.integers(-8, 9, size).astype(kind) for name, size in shapes.items()}
    assert_same(proto, model, feeds)


def test_a_transposed_first_operand(worker: Worker) -> None:
    proto = parse("""g (float[k,m] a, float[k,3] b, float[3] c) => (float[m,3] y)
      { t = Transpose<perm=[1,0]>(a) y = Gemm<alpha=0.5, beta=2.0>(t, b, c) }""")
    model, _ = run_passes(proto, MatMulAddToGemm(), worker=worker)
    assert ops(model) == {"Gemm": 1}
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 3), np.float32)
    assert_same(proto, model, {"a": a, "b": b, "c": np.arange(3, dtype=np.float32)})


@pytest.mark.parametrize(
    ("inputs", "output", "reason"),
    [
        ("float[2,3,4] a, float[4,5] b, float[5] c", "float[2,3,5]", "is no matrix, its rank is 3"),
        ("float[3,4] a, float[4] b, float[1] c", "float[3]", "is no matrix, its rank is 1"),
        ("int32[3,4] a, int32[4,5] b, int32[5] c", "int32[3,5]", "no Gemm for its type"),
        ("float[1,4] a, float[4,5] b, float[7,5] c", "float[7,5]", "not known to broadcast"),
        ("float[m,4] a, float[4,5] b, float[n,5] c", "float[k,5]", "not known to broadcast"),
        ("float[3,4] a, float[4,5] b, float[2,3,5] c", "float[2,3,5]", "not known to broadcast"),
    ],
)
def test_refusals(worker: Worker, inputs: str, output: str, reason: str) -> None:
    proto = parse(f"g ({inputs}) => ({output} y) {{ p = MatMul(a, b) y = Add(p, c) }}")
    model, run = run_passes(proto, MatMulAddToGemm(), worker=worker)
    assert ops(model) == {"MatMul": 1, "Add": 1}
    assert any(reason in refusal.reason for refusal in run.journal.refusals), run.journal.refusals


def test_a_transpose_that_others_need_stays(worker: Worker) -> None:
    proto = parse("""g (float[4,3] a, float[4,5] b) => (float[3,5] y, float[3,4] z)
      { t = Transpose(a) z = Relu(t) y = Gemm(t, b) }""")
    model, run = run_passes(proto, MatMulAddToGemm(), worker=worker)
    assert ops(model)["Transpose"] == 1
    assert any("2 consumers" in refusal.reason for refusal in run.journal.refusals)
