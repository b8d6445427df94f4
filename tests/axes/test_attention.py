"""Attention as products of what Reshape and Transpose make heads of: heads go as a whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.axes.support import TOLERANCE, built, cut

# How Reshape is told the sizes of batch and sequence, before those of the heads.
TARGETS = {"stated": "{batch}, {length}", "copied": "0, 0", "inferred": "{batch}, -1"}


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 5),
    size=st.tuples(st.integers(2, 5), st.integers(1, 4)),
    removed=st.sampled_from([0.5, 0.9]),
    seed=st.integers(0, 99),
)
def test_heads_can_go(
    *, target: str, batch: int, length: int, size: tuple[int, int], removed: float, seed: int
) -> None:
    heads, depth = size
    front = TARGETS[target].format(batch=batch, length=length)
    text = f"""<ir_version: 10, opset_import: ["" : 17]>
        g (float[{batch}, {length}, 6] input) => (float[{batch}, {length}, 6] output) {{
            s = Constant<value = int64[4] {{ {front}, {heads}, {depth} }}>()
            t = Constant<value = int64[3] {{ {front}, {heads * depth} }}>()
            q1 = MatMul(input, W_six_wide)
            q2 = Add(q1, V_wide)
            q3 = Reshape(q2, s)
            q = Transpose<perm = [0, 2, 1, 3]>(q3)
            k1 = MatMul(input, V_six_wide)
            k2 = Reshape(k1, s)
            k = Transpose<perm = [0, 2, 3, 1]>(k2)
            v1 = MatMul(input, P_six_wide)
            v2 = Reshape(v1, s)
            v = Transpose<perm = [0, 2, 1, 3]>(v2)
            a = MatMul(q, k)
            b = Softmax<axis = -1>(a)
            c = MatMul(b, v)
            d = Transpose<perm = [0, 2, 1, 3]>(c)
            e = Reshape(d, t)
            f = MatMul(e, W_wide_six)
            output = Add(f, input)
        }}"""
    proto = built(text, {"six": 6, "wide": heads * depth}, seed)
    analysis, facts = cut(proto, removed, seed)
    assert heads in [group.width for group in analysis.groups]
    assert facts.error <= TOLERANCE
