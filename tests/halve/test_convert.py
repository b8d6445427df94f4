"""Conversion to half: one test for each thing that converters are known to get wrong."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.runtime.worker import Worker
from tests.halve.support import BFLOAT16, FLOAT, FLOAT16, assert_near, converted, types
from tests.support import compute, parse
from tests.traps import kit


def near(proto: onnx.ModelProto, worker: Worker, *feeds: kit.Feeds) -> onnx.ModelProto:
    """The model in float16, which computes the same within rounding."""
    after, _ = converted(proto, worker)
    for one in feeds or tuple(kit.drawn(proto)):
        for old, new in zip(compute(proto, one), compute(after, one), strict=True):
            assert_near(old, new)
    return after


def casts(proto: onnx.ModelProto) -> int:
    return kit.operators(proto)["Cast"]


@pytest.mark.parametrize("opset", range(9, 24))
def test_every_opset(opset: int, worker: Worker) -> None:
    text = "g (float[2,3,8,8] x) => (float[2,4] y) { c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r)"
    text += " f = Flatten(p) m = MatMul(f, v) y = Sigmoid(m) }"
    weights = {"w": kit.normal(5, 3, 3, 3) / 9, "v": kit.normal(5, 4)}
    ir_version = 8 if opset < 21 else 10
    after = near(kit.model(text, opset=opset, ir_version=ir_version, **weights), worker)
    assert types(after)["w"] == FLOAT16
    assert casts(after) == 2
    assert after.opset_import[0].version == opset


@pytest.mark.parametrize(("opset", "raised"), [(9, 22), (13, 22), (22, 22)])
def test_bfloat16_raises_the_opset_where_a_conv_needs_it(opset: int, raised: int, worker: Worker) -> None:
    ir_version = 8 if opset < 21 else 10
    proto = kit.model(
        "g (float[1,2,4,4] x) => (float[1,3,4,4] y) { y = Conv(x, w) }",
        opset=opset, ir_version=ir_version, w=kit.normal(3, 2, 1, 1),
    )  # fmt: skip
    after, found = converted(proto, worker, "bfloat16")
    assert after.opset_import[0].version == raised
    assert found.nodes == {"y"}
    assert types(after)["w"] == BFLOAT16


def test_bfloat16_raises_no_opset_that_it_does_not_need(worker: Worker) -> None:
    proto = kit.model("g (float[2,3] x) => (float[2,4] y) { y = MatMul(x, w) }", opset=13, w=kit.normal(3, 4))
    assert converted(proto, worker, "bfloat16")[0].opset_import[0].version == 13


def test_scales_of_resize_stay_float(worker: Worker) -> None:
    proto = kit.model(
        """g (float[1,2,4,4] x) => (float[1,3,10,10] y) {
        a = Conv(x, w)
        b = Resize<mode = "linear">(a, roi, scales)
        y = Conv(b, v)
    }""",
        w=kit.normal(2, 2, 1, 1),
        v=kit.normal(3, 2, 1, 1),
        roi=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
        scales=np.array([1, 1, 2.5, 2.5], np.float32),
    )
    after = near(proto, worker)
    assert (types(after)["scales"], types(after)["roi"], types(after)["b"]) == (FLOAT, FLOAT, FLOAT16)


def test_a_shared_constant_is_stored_twice_only_if_both_types_are_read(worker: Worker) -> None:
    proto = kit.model(
        """g (float[1,2,4,4] x) => (float[1,2,8,8] y, float[4] z) {
        y = Resize<mode = "nearest">(x, , s)
        z = MatMul(s, w)
    }""",
        s=np.array([1, 1, 2, 2], np.float32),
        w=kit.normal(4, 4),
    )
    after = near(proto, worker)
    assert Counter(tensor.data_type for tensor in after.graph.initializer) == {FLOAT: 1, FLOAT16: 2}


def test_indices_of_topk_stay_integers(worker: Worker) -> None:
    proto = parse(
        """g (float[2,9] x) => (float[2,3] y, int64[2,3] i) <int64[1] k = {3}> {
        a = Mul(x, x) y, i = TopK(a, k) }"""
    )
    after = near(proto, worker, {"x": np.arange(18, dtype=np.float32).reshape(2, 9)})
    assert types(after)["i"] == TensorProto.INT64


def test_boxes_and_scores_of_nms_are_float(worker: Worker) -> None:
    proto = parse(
        """g (float[1,3,4] b, float[1,1,3] s) => (int64[N,3] i)
        <int64 m = {2}, float t = {0.5}> {
        c = Relu(b)
        d = Sigmoid(s)
        i = NonMaxSuppression(c, d, m, t)
    }"""
    )
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 1.1], [2, 2, 3, 3]]], np.float32)
    after = near(proto, worker, {"b": boxes, "s": np.array([[[0.9, 0.8, 0.7]]], np.float32)})
    found = types(after)
    nms = after.graph.node[-1]
    assert all(found[name] == FLOAT for name in (nms.input[0], nms.input[1], nms.input[3]))


def test_initializers_captured_by_branches(worker: Worker) -> None:
    proto = kit.model(
        """g (float[2,3] x, bool c) => (float[2,4] y) {
        m = MatMul(x, w)
        y = If(c) <
            then_branch = t () => (float[2,4] p) { q = MatMul(x, w) p = Add(q, b) },
            else_branch = e () => (float[2,4] r) { r = Mul(m, b) }
        >
    }""",
        w=kit.normal(3, 4),
        b=kit.normal(4),
    )
    feeds = [{"x": kit.normal(2, 3), "c": np.array(flag)} for flag in (True, False)]
    after = near(proto, worker, *feeds)
    assert {tensor.data_type for tensor in after.graph.initializer} == {FLOAT16}
    assert casts(after) == 2


def test_initializers_of_a_branch_of_its_own(worker: Worker) -> None:
    proto = kit.model(
        """g (float[2,3] x, bool c) => (float[2,3] y) {
        y = If(c) <
            then_branch = t () => (float[2,3] p) { p = MatMul(x, k) },
            else_branch = e () => (float[2,3] r) { r = Neg(x) }
        >
    }""",
        k=kit.normal(3, 3),
    )
    branch = next(a.g for a in proto.graph.node[0].attribute if a.name == "then_branch")
    branch.initializer.append(proto.graph.initializer.pop())
    feeds = [{"x": kit.normal(2, 3), "c": np.array(flag)} for flag in (True, False)]
    after = near(proto, worker, *feeds)
    chosen = next(node for node in after.graph.node if node.op_type == "If")
    inner = next(a.g for a in chosen.attribute if a.name == "then_branch")
    assert inner.initializer[0].data_type == FLOAT16


def test_values_carried_by_a_loop_and_scan_outputs(worker: Worker) -> None:
    proto = kit.model(
        """g (float[2,3] x, int64 n) => (float[2,3] y, float[S,2,3] z) {
        y, z = Loop(n, , x) <body = b (int64 i, bool c, float[2,3] a)
                                   => (bool d, float[2,3] u, float[2,3] v) {
            d = Identity(c)
            u = MatMul(a, w)
            v = Sin(u)
        }>
    }""",
        w=kit.normal(3, 3) / 3,
    )
    feeds = [{"x": kit.normal(2, 3), "n": np.array(n)} for n in (0, 1, 4)]
    after = near(proto, worker, *feeds)
    assert casts(after) == 3  # the input and both outputs
    body = next(node for node in after.graph.node if node.op_type == "Loop").attribute[0].g
    assert body.input[2].type.tensor_type.elem_type == FLOAT16


def test_states_and_inputs_of_a_scan(worker: Worker) -> None:
    proto = kit.model(
        """g (float[3] h, float[5,2] x) => (float[3] y, float[5,3] z) {
        y, z = Scan<num_scan_inputs = 1, body = b (float[3] s, float[2] a) => (float[3] t, float[3] u) {
            m = MatMul(a, w)
            t = Add(s, m)
            u = Tanh(t)
        }>(h, x)
    }""",
        w=kit.normal(2, 3),
    )
    assert casts(near(proto, worker)) == 4


def test_a_function_is_half_for_all_its_calls(worker: Worker) -> None:
    proto = parse(
        """g (float[2,3] x) => (float[2,3] y) <float[3,3] w = {1, 2, 0, 0, 1, 2, 2, 0, 1}> {
        a = local.f(x, w)
        y = local.f(a, w)
    }""",
        functions="""<domain: "local", opset_import: ["" : 17]> f (p, q) => (s) {
        half = Constant<value_float = 0.5>()
        r = MatMul(p, q)
        s = Mul(r, half)
    }""",
    )
    after = near(proto, worker)
    assert casts(after) == 2
    assert types(after)["w"] == FLOAT16


def test_a_function_that_is_called_with_other_types_stays(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x, double[2] d) => (float[2] y, double[2] z) {
        a = Relu(x)
        y = local.f(a)
        z = local.f(d)
    }""",
        functions="""<domain: "local", opset_import: ["" : 17]> f (p) => (s) { s = Add(p, p) }""",
    )
    after = near(proto, worker)
    assert types(after)["z"] == TensorProto.DOUBLE


def test_chains_of_casts_vanish(worker: Worker) -> None:
    proto = parse(
        """g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> {
        a = Cast<to = 10>(x)
        b = Cast<to = 1>(a)
        c = MatMul(b, w)
        d = Cast<to = 10>(c)
        y = Cast<to = 1>(d)
    }"""
    )
    assert casts(near(proto, worker)) == 2


def test_what_attributes_state(worker: Worker) -> None:
    proto = kit.model(
        """g (int64[2] s, float[2,3] x, int64[2,3] i) => (float[2,3] y, float[2,3] z, float[2,3] u) {
        a = ConstantOfShape(s)
        b = ConstantOfShape<value = float[1] {1.5}>(s)
        c = Add(a, b)
        y = MatMul(c, w)
        d = Cast<to = 1>(i)
        z = MatMul(d, w)
        e = MatMul(x, w)
        f = RandomUniform<shape = [2, 3], low = 2.0, high = 2.0>()
        g1 = MatMul(f, w)
        u = Add(e, g1)
    }""",
        w=kit.normal(3, 3),
    )
    feeds = {"s": kit.ints(2, 3), "x": kit.normal(2, 3), "i": np.arange(6).reshape(2, 3)}
    after = near(proto, worker, feeds)
    assert casts(after) == 6  # of x, i and the random numbers, and of the three outputs


def test_sequences_change_together_or_not_at_all(worker: Worker) -> None:
    inner = parse(
        """g (float[4,2] x, int64 i) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}, int64 two = {2}> {
        s = SplitToSequence<axis = 0>(x, two)
        e = SequenceAt(s, i)
        y = MatMul(e, w)
    }"""
    )
    after = near(inner, worker, {"x": kit.normal(4, 2), "i": np.array(1)})
    assert casts(after) == 2
    outer = parse(
        """g (float[2,2] x) => (seq(float[2,2]) s) <float[2,2] w = {1, 2, 3, 4}> {
        a = MatMul(x, w)
        s = SequenceConstruct(a, a)
    }"""
    )
    after = near(outer, worker)
    assert [node.op_type for node in after.graph.node] == ["Cast", "MatMul", "Cast", "SequenceConstruct"]


def test_65505_and_subnormals(worker: Worker) -> None:
    """65505 rounds to 65504, and half of the least subnormal to zero: as the types have it."""
    proto = kit.model(
        "g (float[2,2] x) => (float[2,2] y) { y = MatMul(x, w) }",
        w=np.array([[65505, 6e-8], [1.0, 2.9e-8]], np.float32),
    )
    after = near(proto, worker, {"x": np.eye(2, dtype=np.float32)})
    stored = numpy_helper.to_array(after.graph.initializer[0])
    np.testing.assert_array_equal(stored, np.array([[65504, 2**-24], [1, 0]], np.float16))


def test_empty_tensors(worker: Worker) -> None:
    proto = kit.model(
        "g (float[N,3] x) => (float[N,4] y, float[0,4] z) { y = MatMul(x, w) z = MatMul(e, w) }",
        w=kit.normal(3, 4),
        e=np.zeros((0, 3), np.float32),
    )
    near(proto, worker, {"x": np.zeros((0, 3), np.float32)}, {"x": kit.normal(2, 3)})


def test_what_is_half_already_meets_without_casts(worker: Worker) -> None:
    proto = kit.model(
        """g (float16[2,3] x) => (float16[2,3] y) {
        a = MatMul(x, h)
        b = Cast<to = 1>(a)
        c = MatMul(b, w)
        y = Cast<to = 10>(c)
    }""",
        h=kit.normal(3, 3, dtype=np.float16),
        w=kit.normal(3, 3),
    )
    after = near(proto, worker, {"x": kit.normal(2, 3, dtype=np.float16)})
    assert casts(after) <= 1  # the output keeps its name, so its Cast may stay


def test_kept_nodes_read_float(worker: Worker) -> None:
    proto = kit.model(
        "g (float[2,3] x) => (float[2,3] y) { a = MatMul(x, w) b = Exp(a) y = MatMul(b, w) }",
        w=kit.normal(3, 3) / 3,
    )
    after, found = converted(proto, worker, kept={"b"})
    assert found.nodes == {"a", "y"}
    assert found.casts == casts(after) == 4


def test_a_cheap_node_between_kept_ones_is_float(worker: Worker) -> None:
    proto = kit.model(
        "g (float[2,3] x) => (float[2,3] y) { a = Exp(x) b = Neg(a) c = Exp(b) y = MatMul(c, w) }",
        w=kit.normal(3, 3) / 3,
    )
    _, found = converted(proto, worker, kept={"a", "c"})
    assert found.nodes == {"y"}
    assert found.casts == 2


def test_several_readers_share_one_cast(worker: Worker) -> None:
    proto = kit.model(
        "g (float[2,3] x) => (float[2,3] y) { a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b) }",
        w=kit.normal(3, 3),
        v=kit.normal(3, 3),
    )
    assert casts(near(proto, worker)) == 2


def test_the_interface_becomes_half_on_request(worker: Worker) -> None:
    proto = kit.model(
        "g (float[2,3] x, int64[2] i) => (float[2,3] y, int64[2] j) { y = MatMul(x, w) j = Neg(i) }",
        w=kit.normal(3, 3),
    )
    after, found = converted(proto, worker, keep_io=False)
    assert found.casts == 0
    assert [types(after)[name] for name in "xiyj"] == [FLOAT16, TensorProto.INT64, FLOAT16, TensorProto.INT64]


def test_names_and_words_of_an_output_stay_with_it(worker: Worker) -> None:
    proto = kit.model("g (float[2,3] x) => (float[2,3] y) { y = MatMul(x, w) }", w=kit.normal(3, 3))
    proto.graph.output[0].doc_string = "probabilities"
    after, _ = converted(proto, worker)
    assert after.graph.output[0].doc_string == "probabilities"


def test_custom_operators_are_left_alone(worker: Worker) -> None:
    node = helper.make_node("Custom", ["a"], ["b"], domain="mine")
    proto = parse("g (float[2,2] x) => (float[2,2] y) { a = Relu(x) b = Relu(a) y = MatMul(b, x) }")
    proto.graph.node[1].CopyFrom(node)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    after, found = converted(proto, worker)
    assert found.nodes <= {"a", "y"}
    assert next(n for n in after.graph.node if n.op_type == "Custom").input[0] in {"a", "a_float"}


def test_contrib_operators(worker: Worker) -> None:
    proto = parse("g (float[2,4] x) => (float[2,4] y) { a = Relu(x) y = Relu(a) }")
    proto.graph.node[1].CopyFrom(helper.make_node("BiasGelu", ["a", "b"], ["y"], domain="com.microsoft"))
    proto.graph.initializer.append(kit.tensor("b", kit.normal(4)))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    after, found = converted(proto, worker)
    assert found.nodes == {"a", "y"}
    for old, new in zip(*(compute(one, {"x": kit.normal(2, 4)}) for one in (proto, after)), strict=True):
        assert_near(old, new)


def test_large_weights_are_converted_once(worker: Worker) -> None:
    weight = kit.normal(200, 200)
    proto = kit.model("g (float[2,200] x) => (float[2,200] y) { y = MatMul(x, w) }", w=weight)
    after, _ = converted(proto, worker)
    stored = numpy_helper.to_array(after.graph.initializer[0])
    np.testing.assert_array_equal(stored, weight.astype(np.float16))


def test_emulation_rounds_every_value(worker: Worker) -> None:
    """A chain of float nodes with explicit rounding is what numpy computes in half, step by step."""
    text = "g (float[1,64] x) => (float[1,64] y) { a = MatMul(x, e) b = Sin(a) c = Cos(b) y = MatMul(c, e) }"
    proto, x = kit.model(text, e=np.eye(64, dtype=np.float32)), kit.normal(1, 64)
    steps = x.astype(np.float16)
    for function in (np.sin, np.cos):
        steps = function(steps.astype(np.float32)).astype(np.float16)
    after, _ = converted(proto, worker, emulate=True)
    (found,) = compute(after, {"x": x})
    np.testing.assert_array_equal(found, steps.astype(np.float32))
