"""Old opsets, subgraphs, quantized layers, networks drawn at random, and the committed models."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.legacy import to_ir4
from graphopt.model import Model
from graphopt_passes.axes import groups, shrink
from tests.axes.support import TOLERANCE, built, cut
from tools import models
from tools.bench import drawn
from tools.channels import oracle

HEAD = "g (float[2, 3, 4, 4] input) => (float[2, 5, 4, 4] output)"
COMMITTED = sorted(path.stem for path in (models.ROOT / "models").glob("*.onnx"))
SIZES = {"three": 3, "eight": 8, "four": 4, "five": 5}
FIRST = "x = Conv(input, W_eight_three_1_1, V_eight)"
LAST = "output = Conv(y, W_five_eight_1_1)"


def graph(body: str, opset: int, first: str = FIRST, last: str = LAST) -> onnx.ModelProto:
    head = f'<ir_version: {10 if opset > 10 else 4}, opset_import: ["" : {opset}]>'
    return built(f"{head} {HEAD} {{ {first} \n {body} \n {last} }}", SIZES, seed=3)


def test_an_unused_weight_of_which_only_the_size_is_read_goes() -> None:
    """Exporters make biases of zeros in the size of a weight; the whole weight would stay for it."""
    body = """s = Shape<start = 0, end = 1>(W_eight_eight_1_1)
        o = Constant<value = float {0.5}>()
        b = Expand(o, s)
        y = Conv(x, W_eight_eight_1_1, b)"""
    proto = graph(body, 17)
    whole = Model.of(proto)
    analysis, facts = cut(proto, 0.5, 0)
    assert facts.error <= TOLERANCE
    small = shrink(whole, oracle.drawn(groups(whole), 0.5, 0))
    assert not [node for node in small.ir.graph if node.op_type in ("Shape", "Where")]
    assert analysis.groups
    assert "W_eight_eight_1_1" not in small.ir.graph.initializers


@pytest.mark.parametrize("removed", [0.25, 0.5])
def test_sizes_in_attributes_follow(removed: float) -> None:
    """Split until opset 12, and Slice until 9, state sizes in attributes."""
    split = """a, b = Split<axis = 1, split = [2, 6]>(x)
        d, e = Split<axis = 1, split = [4, 2]>(b)
        y = Concat<axis = 1>(d, a, e)"""
    slices = """a = Slice<axes = [1], starts = [0], ends = [4]>(x)
        b = Slice<axes = [1], starts = [4], ends = [8]>(x)
        y = Concat<axis = 1>(b, a)"""
    for proto in (graph(split, 11), graph(slices, 9)):
        analysis, facts = cut(proto, removed, 0)
        assert sum(group.width for group in analysis.groups) == 8
        assert facts.error <= TOLERANCE


def test_whole_groups_of_a_group_normalization_can_go() -> None:
    """Opset 21, where it has a scale for each channel."""
    body = "y = GroupNormalization<num_groups = 4>(x, W_eight, V_eight)"
    analysis, facts = cut(graph(body, 21), 0.5, 0)
    assert [group.width for group in analysis.groups] == [4]
    assert facts.error <= TOLERANCE


IF = """p = Constant<value = bool {{1}}>()
    y = If (p) <
        then_branch = t () => (float[2, {n}, 4, 4] u) {{ {then} }},
        else_branch = e () => (float[2, {n}, 4, 4] v) {{ {other} }}
    >"""


def test_what_a_subgraph_reads_can_go() -> None:
    """Layers inside sum over a captured value, and so its channels can go."""
    body = IF.format(n=8, then="u = Conv(x, W_eight_eight_1_1)", other="v = Conv(x, V_eight_eight_1_1)")
    analysis, facts = cut(graph(body, 17), 0.5, 0)
    assert [group.name for group in analysis.groups] == ["x"]
    assert facts.error <= TOLERANCE
    assert facts.bytes[1] < facts.bytes[0]


def test_what_leaves_a_subgraph_stays() -> None:
    body = IF.format(n=8, then="u = Relu(x)", other="v = Neg(x)")
    analysis, facts = cut(graph(body, 17), 0.5, 0)
    assert not analysis.groups
    assert facts.error == 0
    assert any("subgraph" in found.reason and found.width == 8 for found in analysis.frozen)


def test_what_a_loop_carries_stays_and_what_it_captures_can_go() -> None:
    body = """n = Constant<value = int64 {3}>()
        p = Constant<value = bool {1}>()
        z = Conv(x, W_eight_eight_1_1)
        y = Loop (n, p, z) <body = b (int64 i, bool go, float[2, 8, 4, 4] s)
            => (bool on, float[2, 8, 4, 4] r) {
                on = Identity(go)
                a = Conv(x, V_eight_eight_1_1)
                r = Add(a, s)
            }>"""
    analysis, facts = cut(graph(body, 17), 0.5, 0)
    assert [group.name for group in analysis.groups] == ["x"]
    assert facts.error <= TOLERANCE
    assert any("subgraph" in found.reason for found in analysis.frozen)


def test_quantized_layers_are_cut() -> None:
    """Weights have a scale for each channel, and follow through QuantizeLinear and DequantizeLinear."""
    body = """s = Constant<value = float {0.05}>()
        z = Constant<value = uint8 {128}>()
        q = QuantizeLinear(x, s, z)
        a = DequantizeLinear(q, s, z)
        w1 = QuantizeLinear<axis = 0>(W_eight_eight_1_1, P_eight)
        w = DequantizeLinear<axis = 0>(w1, P_eight)
        y = Conv(a, w)"""
    analysis, facts = cut(graph(body, 17), 0.5, 0)
    assert facts.error <= TOLERANCE
    assert "x" in [group.name for group in analysis.groups]


# Random networks: each step makes a value of 8 channels from earlier ones.
STEPS = {
    "conv": "{y} = Conv(x{a}, W_eight_eight_1_1)",
    "spatial": "{y} = Conv<pads = [1, 1, 1, 1]>(x{a}, W_eight_eight_three_three, V_eight)",
    "grouped": "{y} = Conv<group = 2>(x{a}, W_eight_four_1_1)",
    "depthwise": "{y} = Conv<group = 8>(x{a}, W_eight_1_1_1)",
    "sum": "{y} = Add(x{a}, x{b})",
    "product": "g{n} = Sigmoid(x{b}) \n {y} = Mul(x{a}, g{n})",
    "concat": "c{n} = Concat<axis = 1>(x{a}, x{b}) \n {y} = Conv(c{n}, W_eight_sixteen_1_1)",
    "halves": "h{n}, i{n} = Split<axis = 1, num_outputs = 2>(x{a}) \n {y} = Concat<axis = 1>(i{n}, h{n})",
    "norm": "{y} = BatchNormalization(x{a}, W_eight, V_eight, W_eight, P_eight)",
    "relu": "{y} = Relu(x{a})",
    "mixed": "{y} = Softmax<axis = 1>(x{a})",
    "pooled": "p{n} = GlobalAveragePool(x{a}) \n {y} = Mul(x{b}, p{n})",
}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0), st.integers(0)), max_size=9),
    removed=st.sampled_from([0.25, 0.5, 0.8]),
    seed=st.integers(0, 99),
)
def test_random_networks(steps: list[tuple[str, int, int]], removed: float, seed: int) -> None:
    lines = [FIRST.replace("x =", "x0 =")]
    for n, (name, a, b) in enumerate(steps, 1):
        lines.append(STEPS[name].format(y=f"x{n}", n=n, a=a % n, b=b % n))
    lines.append(LAST.replace("(y", f"(x{len(steps)}"))
    body = " \n ".join(lines)
    proto = built(
        f'<ir_version: 10, opset_import: ["" : 20]> {HEAD} {{ {body} }}', {**SIZES, "sixteen": 16}, seed
    )
    analysis, facts = cut(proto, removed, seed)
    assert analysis.groups or sum(found.width for found in analysis.frozen) >= 8 + 5
    assert facts.error <= max(TOLERANCE, 4 * facts.noise)


@pytest.mark.parametrize(
    "name", [name for name in models.recipes() if models.recipes()[name].package is None]
)
@pytest.mark.parametrize("removed", [0.25, 0.5])
def test_committed_models(name: str, removed: float) -> None:
    model = Model.load(models.path(name))
    to_ir4(model)
    analysis = groups(model)
    facts = oracle.check(model, oracle.drawn(analysis, removed, 0), next(drawn.feeds(name, 1, seed=0)))
    if name == "fashion_lstm":  # before the exact passes its states are made in sizes that are read
        assert [found.width for found in analysis.frozen if "at run time" in found.reason] == [96]
    else:
        assert facts.bytes[1] < facts.bytes[0]
    assert facts.error <= TOLERANCE
