"""LSTM, GRU and RNN: hidden units go with their gates, states and peepholes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.axes.support import TOLERANCE, built, cut

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# Optional operands behind x, w, r and b, of which the third is a length for each sequence.
EXTRAS = {"": "", "states": ", , W_dirs_batch_hidden", "peepholes": ", , , , W_dirs_threefold"}
CASES = [
    (op, extra, way)
    for op in GATES
    for extra in EXTRAS
    for way in ("forward", "reverse", "bidirectional")
    if op == "LSTM" or extra != "peepholes"
]


@pytest.mark.parametrize(("op", "extra", "way"), CASES)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    hidden=st.integers(2, 9),
    batch=st.integers(1, 3),
    time=st.integers(1, 4),
    removed=st.sampled_from([0.5, 0.9]),
    seed=st.integers(0, 99),
)
def test_hidden_units_can_go(
    *, op: str, extra: str, way: str, hidden: int, batch: int, time: int, removed: float, seed: int
) -> None:
    dirs = 2 if way == "bidirectional" else 1
    sizes = {
        "dirs": dirs, "gates": GATES[op] * hidden, "biases": 2 * GATES[op] * hidden, "hidden": hidden,
        "threefold": 3 * hidden, "batch": batch, "read": dirs * hidden, "three": 3, "five": 5,
    }  # fmt: skip
    operands = "W_dirs_gates_three, W_dirs_gates_hidden, V_dirs_biases" + EXTRAS[extra]
    proto = built(
        f"""<ir_version: 10, opset_import: ["" : 17]>
        g (float[{time}, {batch}, 3] input) => (float[{time}, {batch}, 5] output) {{
            y = {op}<hidden_size = {hidden}, direction = "{way}">(input, {operands})
            a = Transpose<perm = [0, 2, 1, 3]>(y)
            t = Constant<value = int64[3] {{ {time}, {batch}, {dirs * hidden} }}>()
            b = Reshape(a, t)
            output = MatMul(b, W_read_five)
        }}""",
        sizes,
        seed,
    )
    analysis, facts = cut(proto, removed, seed)
    assert [group.width for group in analysis.groups] == [hidden]
    assert facts.error <= TOLERANCE
    assert facts.bytes[1] < facts.bytes[0]


def test_an_output_that_leaves_the_model_keeps_the_hidden_units() -> None:
    proto = built(
        """<ir_version: 10, opset_import: ["" : 17]>
        g (float[2, 1, 3] input) => (float[2, 1, 1, 4] output) {
            output = LSTM<hidden_size = 4>(input, W_1_gates_three, W_1_gates_hidden)
        }""",
        {"gates": 16, "three": 3, "hidden": 4},
        0,
    )
    analysis, _ = cut(proto, 0.5, 0)
    assert not analysis.groups
    assert any("graph output" in found.reason for found in analysis.frozen)
