"""fold-constants: what folds, what must not, and what the file may cost."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt import graph as g
from graphopt.journal import Journal
from graphopt.runtime.worker import Worker
from graphopt_passes.exact.fold_constants import FoldConstants
from tests.support import assert_same, compute, ops, parse, run_passes, serialized

X = {"x": np.arange(4, dtype=np.float32)}


def graph_of(
    nodes: list, inputs: list, outputs: list, initializers: list, opset: int = 17
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_a_chain_of_constants_becomes_one_initializer_with_the_old_name(worker: Worker) -> None:
    proto = parse(
        """g (float[4] x) => (float[4] y) <float[4] a = {1, 2, 3, 4}, float[4] b = {1, 1, 1, 1}>
        { s = Add(a, b)  t = Mul(s, s)  y = Add(x, t) }"""
    )
    model, run = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Add": 1}
    assert list(model.ir.graph.initializers) == ["t"]
    assert run.journal.counts() == {"fold-constants": 1}
    assert_same(proto, model, X)


def test_a_second_run_changes_nothing(worker: Worker) -> None:
    proto = parse(
        """g (float[4] x) => (float[4] y) <float[4] a = {1, 2, 3, 4}>
        { s = Sqrt(a) r = RandomNormal<shape = [4]>() t = Mul(s, r) y = Add(x, t) }"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert not FoldConstants().apply(model, run_passes(proto, worker=worker)[1])


def test_an_overridable_initializer_is_not_folded(worker: Worker) -> None:
    proto = parse(
        """g (float[4] x, float[4] a = {1, 2, 3, 4}) => (float[4] y) { t = Neg(a)  y = Add(x, t) }"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Neg": 1, "Add": 1}


@pytest.mark.parametrize(
    "random",
    [
        "RandomNormal<shape = [4]>()",
        "RandomUniform<shape = [4]>()",
        "RandomNormalLike(a)",
        "RandomUniformLike(a)",
        "Bernoulli(a)",
        "Dropout(a, ratio, yes)",
    ],
)
def test_random_operators_stay(worker: Worker, random: str) -> None:
    proto = parse(
        f"""g (float[4] x) => (float[4] y)
        <float[4] a = {{0.1, 0.2, 0.3, 0.4}}, float ratio = {{0.5}}, bool yes = {{1}}>
        {{ r = {random} t = Neg(r)  y = Add(x, t) }}"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert sum(ops(model).values()) == 3


def test_dropout_in_inference_folds(worker: Worker) -> None:
    proto = parse(
        """g (float[4] x) => (float[4] y) <float[4] a = {1, 2, 3, 4}, float ratio = {0.5}>
        { r = Dropout(a, ratio) y = Add(x, r) }"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Add": 1}
    assert_same(proto, model, X)


def test_quantized_weights_stay_quantized(worker: Worker) -> None:
    proto = parse(
        """g (float[4] x) => (float[4] y) <int8[4] w = {1, -2, 3, -4}, float s = {0.5}, int8 z = {0}>
        { d = DequantizeLinear(w, s, z)  y = Add(x, d) }"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"DequantizeLinear": 1, "Add": 1}


def weights(dtype: type, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-8, 8, shape).astype(dtype)


def test_a_widening_cast_of_a_weight_is_kept_until_growth_is_allowed(worker: Worker) -> None:
    proto = graph_of(
        [
            helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["c", "s"], ["m"]),
            helper.make_node("MatMul", ["x", "m"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 32])],
        [
            numpy_helper.from_array(weights(np.int8, 32, 32), "w"),
            numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        ],
    )
    model, run = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Cast": 1, "Mul": 1, "MatMul": 1}
    assert "narrow type" in next(iter(run.journal.refusals)).reason
    model, _ = run_passes(proto, FoldConstants(max_growth=4096), worker=worker)
    assert ops(model) == {"MatMul": 1}
    assert_same(proto, model, {"x": np.ones((2, 32), np.float32)})


def transposed_weight(*more: onnx.NodeProto) -> onnx.ModelProto:
    return graph_of(
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
            *more,
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
        [
            helper.make_tensor_value_info(o, TensorProto.FLOAT, [2, 64])
            for o in ("y", *(n.output[0] for n in more))
        ],
        [numpy_helper.from_array(weights(np.float32, 64, 64), "w")],
    )


def test_a_transposed_weight_folds_when_nothing_else_needs_the_original(worker: Worker) -> None:
    proto = transposed_weight()
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"MatMul": 1}
    assert_same(proto, model, {"x": np.ones((2, 64), np.float32)})


def test_a_transposed_weight_that_is_shared_stays(worker: Worker) -> None:
    proto = transposed_weight(helper.make_node("MatMul", ["x", "w"], ["z"]))
    model, run = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Transpose": 1, "MatMul": 2}
    assert "bytes" in next(iter(run.journal.refusals)).reason


@pytest.mark.parametrize(
    "blowup",
    [
        "b = ConstantOfShape(n)",
        "b = Expand(one, n)",
        "b = Tile(one, n)",
        "zero = Constant<value_int = 0>() step = Constant<value_int = 1>() end = Squeeze(n)"
        " r = Range(zero, end, step) b = Cast<to = 1>(r)",
        "m = Mul(n, two) h = Div(m, two) b = ConstantOfShape(h)",
    ],
)
@pytest.mark.parametrize("size", [4_000, 2_000_000_000])
def test_what_blows_up_is_not_stored(worker: Worker, blowup: str, size: int) -> None:
    proto = parse(
        f"""g (float[1] x) => (float[n] y)
        <int64[1] n = {{{size}}}, float[1] one = {{1}}, int64[1] two = {{2}}> {{ {blowup} y = Add(x, b) }}"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert model.file_size() <= len(proto.SerializeToString())
    assert worker.providers()


def test_a_large_intermediate_is_fine_when_little_is_stored(worker: Worker) -> None:
    proto = parse(
        """g (float[1] x) => (float[1] y) <int64[1] n = {4000}>
        { b = ConstantOfShape(n) s = ReduceSum<keepdims = 1>(b) y = Add(x, s) }"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Add": 1}


def test_what_depends_on_a_value_that_is_not_stored_folds(worker: Worker) -> None:
    proto = parse(
        """g (float[1000] x) => (float[1000] y, float[1] s) <float[1] a = {2}, int64[1] n = {1000}>
        { e = Expand(a, n)  y = Add(x, e)  s = ReduceSum(e) }"""
    )
    model, run = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Expand": 1, "Add": 1}
    assert {refusal.where for refusal in run.journal.refusals} == {"Expand making 'e'"}
    assert_same(proto, model, {"x": np.arange(1000, dtype=np.float32)})


def test_one_bad_node_does_not_lose_the_batch(worker: Worker) -> None:
    proto = parse(
        """g (float[4] x) => (float[4] y, float[3] z)
        <float[4] a = {1, 2, 3, 4}, float[3] b = {1, 2, 3}, int64[1] i = {9}>
        { n = Neg(a)  bad = Gather(b, i)  still = Neg(bad) y = Add(x, n)  z = Add(b, still) }"""
    )
    model, run = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Gather": 1, "Neg": 1, "Add": 2}
    assert [r.where for r in run.journal.refusals] == ["Gather making 'bad'"]
    assert "ONNX Runtime" in next(iter(run.journal.refusals)).reason


def test_a_node_of_an_unknown_domain_stays(worker: Worker) -> None:
    proto = graph_of(
        [helper.make_node("Mystery", ["a"], ["m"], domain="custom"), helper.make_node("Neg", ["m"], ["y"])],
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "a")],
    )
    proto.opset_import.append(helper.make_opsetid("custom", 1))
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Mystery": 1, "Neg": 1}


def test_kept_nodes_stay(worker: Worker) -> None:
    proto = parse("g (float[1] x) => (float[1] y) <float[1] a = {1}> { n = Neg(a) y = Add(x, n) }")
    model, _ = run_passes(proto, FoldConstants(), worker=worker, keep="Neg")
    assert ops(model) == {"Neg": 1, "Add": 1}


def test_a_limit_on_rewrites_is_respected(worker: Worker) -> None:
    proto = parse(
        """g (float[1] x) => (float[1] y) <float[1] a = {1}, float[1] b = {2}>
        { n = Neg(a) m = Neg(b) s = Add(x, n) y = Add(s, m) }"""
    )
    model, run = run_passes(proto, FoldConstants(), worker=worker, journal=Journal(limit=1))
    assert ops(model) == {"Neg": 1, "Add": 2}
    assert len(run.journal.rewrites) == 1


def test_graph_outputs_become_initializers_that_keep_what_they_declare(worker: Worker) -> None:
    proto = parse(
        "g (float[n] x) => (float[n] y, float[m] z) <float[2] a = {1, 2}> { y = Neg(x) z = Neg(a) }"
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Neg": 1}
    assert_same(proto, model, X)


BRANCHES = """
g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}>
{
  y = If(c) <
    then_branch = t () => (float[2] then_y) <float[2] k = {3, 4}> { s = Add(w, k) then_y = Mul(x, s) },
    else_branch = e () => (float[2] else_y) <float[2] k = {5, 6}> { s = Mul(w, k) else_y = Neg(s) }>
}
"""


@pytest.mark.parametrize("condition", [True, False])
def test_branches_fold_their_captures_though_they_share_names(worker: Worker, condition: bool) -> None:
    proto = parse(BRANCHES)
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"If": 1, "Mul": 1}
    feeds = {"c": np.array(condition), "x": np.array([7, 8], np.float32)}
    assert_same(proto, model, feeds)


def test_control_flow_over_constants_folds_whole(worker: Worker) -> None:
    stored = "{1, 2}, float[2] x = {1, 1}, bool c = {1}>"
    proto = parse(BRANCHES.replace("(bool c, float[2] x)", "(float[2] z)").replace("{1, 2}>", stored))
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {}
    assert_same(proto, model, {"z": np.zeros(2, np.float32)})


def test_a_random_node_inside_a_branch_keeps_the_if(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x) => (float[2] y) <bool c = {1}>
        { r = If(c) <then_branch = t () => (float[2] a) { a = RandomNormal<shape = [2]>() },
                     else_branch = e () => (float[2] b) { b = RandomNormal<shape = [2]>() }>
          y = Add(x, r) }"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model)["If"] == 1


def test_functions_fold_inside_and_as_calls(worker: Worker) -> None:
    functions = """<domain: "local", opset_import: ["" : 17]>
    scaled (v) => (r) { two = Constant<value_float = 2.0>() four = Mul(two, two) r = Mul(v, four) }"""
    text = "g (float[4] x) => (float[4] y) <float[4] a = {1, 2, 3, 4}>"
    both = parse(text + "{ k = local.scaled(a) u = local.scaled(x) y = Add(u, k) }", functions=functions)
    model, _ = run_passes(both, FoldConstants(), worker=worker)
    assert ops(model) == {"scaled": 1, "Mul": 1, "Add": 1}
    assert_same(both, model, X)
    only = parse(text + "{ k = local.scaled(a) y = Add(x, k) }", functions=functions)
    model, _ = run_passes(only, FoldConstants(), worker=worker)
    assert ops(model) == {"Add": 1}
    assert not model.ir.functions


def test_attributes_of_a_function_are_not_folded(worker: Worker) -> None:
    functions = """<domain: "local", opset_import: ["" : 17]>
    cast <to> (v) => (r) { one = Constant<value_float = 1.5>() c = Cast<to: int = @to>(one) r = Mul(v, c) }"""
    proto = parse("g (float[4] x) => (float[4] y) { y = local.cast<to = 1>(x) }", functions=functions)
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"cast": 1, "Cast": 1, "Mul": 1}


def test_a_sequence_folds_only_together_with_what_makes_it_a_tensor(worker: Worker) -> None:
    proto = parse(
        """g (float[1] x) => (float[4] y, seq(float[2]) z) <float[2] a = {1, 2}>
        { s = SequenceConstruct(a, a) c = ConcatFromSequence<axis = 0>(s) y = Add(x, c)
          z = SequenceConstruct(a) }"""
    )
    model, _ = run_passes(proto, FoldConstants(max_growth=100), worker=worker)
    assert ops(model) == {"Add": 1, "SequenceConstruct": 1}
    assert_same(proto, model, {"x": np.ones(1, np.float32)})


def test_integers_divide_and_wrap_as_in_the_runtime(worker: Worker) -> None:
    proto = parse(
        """g (int8[2] x) => (int8[2] y, int32[2] q)
        <int8[2] a = {127, -7}, int8[2] b = {1, 2}, int32[2] m = {-7, 7}, int32[2] d = {2, -2}>
        { s = Add(a, b) y = Add(x, s) q = Div(m, d) }"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Add": 1}
    assert_same(proto, model, {"x": np.zeros(2, np.int8)})


def test_nan_infinity_and_minus_zero_survive(worker: Worker) -> None:
    values = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    proto = graph_of(
        [
            helper.make_node("Abs", ["a"], ["b"]),
            helper.make_node("Neg", ["b"], ["c"]),
            helper.make_node("Add", ["x", "c"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(values, "a")],
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    folded = g.array(model.ir.graph.initializers["c"])
    assert folded is not None and np.signbit(folded[3]) and np.isnan(folded[0])
    assert folded[1] == folded[2] == -np.inf


@pytest.mark.parametrize(
    "elem_type",
    [
        TensorProto.BOOL,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.INT4,
        TensorProto.UINT4,
        TensorProto.STRING,
    ],
)
def test_exotic_types_survive_a_reshape(worker: Worker, elem_type: int) -> None:
    if elem_type == TensorProto.STRING:
        weight = helper.make_tensor("w", elem_type, [2, 3], [b"a", "ü".encode(), b"", b"d", b"e", b"f"])
    else:
        weight = helper.make_tensor("w", elem_type, [2, 3], [0, 1, 1, 0, 1, 0])
    proto = graph_of(
        [helper.make_node("Reshape", ["w", "s"], ["r"]), helper.make_node("Identity", ["r"], ["y"])],
        [],
        [helper.make_tensor_value_info("y", elem_type, [3, 2])],
        [weight, numpy_helper.from_array(np.array([3, 2]), "s")],
        opset=21,
    )
    model, run = run_passes(proto, FoldConstants(), worker=worker)
    after = serialized(model)
    kept = {t.name: t for t in after.graph.initializer}
    if "y" in kept:
        assert kept["y"].data_type == elem_type
        before = numpy_helper.to_array(weight).reshape(3, 2)
        np.testing.assert_array_equal(numpy_helper.to_array(kept["y"]), before)
    else:
        assert any("ONNX Runtime" in refusal.reason for refusal in run.journal.refusals)


def test_a_constant_that_the_batch_does_not_use_up_stays(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}>
        { n = Neg(a) m = Abs(n) k = Sqrt(m) s = Add(x, k) y = Mul(s, a) }"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Add": 1, "Mul": 1}
    assert_same(proto, model, {"x": np.ones(2, np.float32)})


def test_a_dead_node_keeps_its_constant_out_of_the_account(worker: Worker) -> None:
    proto = parse(
        """g (float[6] x) => (float[6] v1, float[3] v2)
        <float[6] a = {1, 2, 3, 4, 5, 6}, float[3] b = {1, 2, 3}>
        { v0 = Neg(x) v1 = Neg(a) v2 = Identity(b) v3 = Relu(a) }"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Neg": 2, "Relu": 1}
    assert model.file_size() <= len(proto.SerializeToString())


UNARY = ("Neg", "Abs", "Relu", "Floor", "Identity", "Sign")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Random graphs over some constants and one input."""
    values, nodes = ["x", "a", "b", "c"], []
    for index in range(draw(st.integers(1, 12))):
        op_type = draw(st.sampled_from(UNARY + BINARY))
        given = [draw(st.sampled_from(values)) for _ in range(1 if op_type in UNARY else 2)]
        nodes.append(helper.make_node(op_type, given, [f"v{index}"]))
        values.append(f"v{index}")
    outputs = draw(st.lists(st.sampled_from(values[4:]), min_size=1, max_size=3, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shapes = {"a": (2, 3), "b": (3,), "c": ()}
    proto = graph_of(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()],
    )
    return onnx.shape_inference.infer_shapes(proto)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_random_graphs_compute_the_same_and_do_not_grow(worker: Worker, proto: onnx.ModelProto) -> None:
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert_same(proto, model, {"x": np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)})
    assert model.file_size() <= len(proto.SerializeToString())
    assert compute(serialized(model), {"x": np.zeros((2, 3), np.float32)})


def test_range_gets_scalars_where_a_vector_became_constant(worker: Worker) -> None:
    proto = parse(
        """g (int64[1] x) => (int64[n] y) <int64[1] a = {3}, int64[1] n = {-1}, int64 one = {1}>
        { zero = Squeeze(x) b = Neg(a) c = Mul(b, n) e = Abs(c) r = Range(zero, e, one) y = Neg(r) }"""
    )
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model)["Range"] == 1
    assert_same(proto, model, {"x": np.array([0])})


def test_one_folded_value_may_be_two_outputs(worker: Worker) -> None:
    proto = parse(
        "g (float[2] x) => (float[2] y, float[2] z) <float[2] a = {1, 2}> { y = Neg(a) z = Neg(x) }"
    )
    proto.graph.output.append(proto.graph.output[0])
    model, _ = run_passes(proto, FoldConstants(), worker=worker)
    assert ops(model) == {"Neg": 1}
    assert [value.name for value in model.ir.graph.outputs] == ["y", "z", "y"]


def test_a_kept_node_stays_though_what_it_feeds_is_folded(worker: Worker) -> None:
    proto = parse(
        """g (float[4] x) => (float[4] y)
        { a = Constant<value = float[4] {1, 2, 3, 4}>() b = Neg(a) y = Add(x, b) }"""
    )
    for keep, stays in (("", False), ("Constant", True)):
        model, _ = run_passes(proto, FoldConstants(), worker=worker, keep=keep)
        assert any(node.op_type == "Constant" for node in g.nodes(model.ir)) is stays
        assert_same(proto, model, X)
