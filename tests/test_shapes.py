"""What shape inference claims holds in ONNX Runtime, whatever sizes the symbolic dims take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from graphopt.shapes.inference import Shapes
from graphopt.shapes.symbols import Dim, Symbols
from tests.support import parse


def facts(text: str, opset: int = 17, functions: str = "") -> tuple[Shapes, dict[str, ir.Value]]:
    model = ir.from_proto(parse(text, opset, functions))
    values = {value.name: value for node in model.graph.all_nodes() for value in node.outputs}
    return Shapes.infer(model), values


UNUSED = "unused = Constant<value_floats=[1.0]>()"


def dims_of(body: str, inputs: str = "float[b,s,384] x", output: str = "y", opset: int = 17) -> object:
    shapes, values = facts(f"g ({inputs}) => (float[k] unused) {{ {UNUSED} {body} }}", opset)
    return shapes.dims(values[output])


def vector_of(body: str, inputs: str = "float[b,s,384] x", opset: int = 17) -> object:
    shapes, values = facts(f"g ({inputs}) => (float[k] unused) {{ {UNUSED} {body} }}", opset)
    return shapes.vector(values["y"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Relu(x)", ("b", "s", 384)),
        ("y = Transpose<perm=[0,2,1]>(x)", ("b", 384, "s")),
        ("y = ReduceMean<axes=[2]>(x)", ("b", "s", 1)),
        ("y = ReduceMean<axes=[1], keepdims=0>(x)", ("b", 384)),
        ("y = Flatten<axis=2>(x)", ("?(1*b*s)", 384)),
        ("t = Constant<value_ints=[0,0,12,32]>() y = Reshape(x, t)", ("b", "s", 12, 32)),
        ("t = Constant<value_ints=[0,0,-1,32]>() y = Reshape(x, t)", ("b", "s", 12, 32)),
        ("t = Constant<value_ints=[0,-1]>() y = Reshape(x, t)", ("b", "?(384*s)")),
        ("t = Shape(x) y = Expand(x, t)", ("b", "s", 384)),
        ("a = Constant<value_ints=[1]>() y = Unsqueeze(x, a)", ("b", 1, "s", 384)),
        ("y = Concat<axis=1>(x, x)", ("b", "?(2*s)", 384)),
        ("i = Constant<value_int=0>() y = Gather<axis=1>(x, i)", ("b", 384)),
        ("t = Transpose<perm=[0,2,1]>(x) y = MatMul(x, t)", ("b", "s", "s")),
        ("s1 = Shape(x) y = ConstantOfShape(s1)", ("b", "s", 384)),
    ],
)
def test_symbols_survive(body: str, expected: object) -> None:
    assert dims_of(body) == expected


def test_same_padding_keeps_the_image_size() -> None:
    image = "float[n,3,h,w] x, float[8,3,3,3] w0"
    assert dims_of("y = Conv<pads=[1,1,1,1]>(x, w0)", image) == ("n", 8, "h", "w")
    assert dims_of('y = Conv<auto_pad="SAME_UPPER">(x, w0)', image) == ("n", 8, "h", "w")


def test_strided_windows_of_one_image_agree() -> None:
    image = "float[n,3,h,w] x, float[8,3,3,3] w0"
    body = """a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w0)
              p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x) y = Relu(a)"""
    assert dims_of(body, image)[2:] == dims_of(body, image, "p")[2:]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Shape(x)", ("b", "s", 384)),
        ("y = Shape<start=1, end=-1>(x)", ("s",)),
        ("y = Size(x)", ("?(384*b*s)",)),
        ("h = Shape(x) i = Constant<value_int=1>() y = Gather(h, i)", ("s",)),
        ("h = Shape(x) m = Constant<value_ints=[-1]>() y = Concat<axis=0>(h, m)", ("b", "s", 384, -1)),
        ("h = Shape(x) y = Mul(h, h)", ("?(1*b*b)", "?(1*s*s)", 147456)),
        ("h = Shape(x) y = Sub(h, h)", (0, 0, 0)),
        ("h = Shape(x) d = Add(h, h) y = Div(d, h)", (2, 2, 2)),
        ("h = Shape(x) y = ReduceProd<keepdims=0>(h)", ("?(384*b*s)",)),
        ("h = Shape(x) y = Equal(h, h)", (1, 1, 1)),
    ],
)
def test_contents_of_shape_computations(body: str, expected: object) -> None:
    assert vector_of(body) == expected


def test_a_dynamic_dim_may_be_one() -> None:
    assert dims_of("y = Add(x, z)", "float[a] x, float[b] z") not in (("a",), ("b",))
    assert dims_of("y = Add(x, z)", "float[a] x, float[3] z") == (3,)


def test_a_target_that_may_be_zero_copies_another_dim() -> None:
    """With s = 0, Reshape copies dim 0 of x: the result is (b, b), not (s, b)."""
    body = "h = Shape(z) y = Reshape(x, h)"
    assert dims_of(body, "float[b,b] x, float[s,b] z") != ("s", "b")


def test_a_position_table_cut_to_the_sequence_broadcasts_to_it() -> None:
    """x + table[:s]: were the table shorter than s ≥ 2, the Add would fail."""
    body = """z = Constant<value_ints=[0]>() e = Shape<start=0, end=1>(x)
              part = Slice(table, z, e) y = Add(x, part)"""
    assert dims_of(body, "float[s] x, float[512] table") == ("s",)


def test_a_minus_one_proves_that_the_dims_beside_it_are_not_zero() -> None:
    body = """n = Constant<value_ints=[0,0,-1,32]>() split = Reshape(x, n)
              t = Transpose<perm=[0,2,1,3]>(split)
              m = Constant<value_ints=[-1]>() q = Shape<start=1,end=2>(x) w = Constant<value_ints=[32]>()
              target = Concat<axis=0>(m, q, w) y = Reshape(t, target)"""
    assert dims_of(body) == ("?(12*b)", "s", 32)


def test_placeholders_are_not_equal() -> None:
    proto = parse("g (float[a,b] x) => (float[a,b] y) { y = Relu(x) }")
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "?"
    model = ir.from_proto(proto)
    first, second = Shapes.infer(model).dims(model.graph.inputs[0])
    assert first != second


def test_stale_value_info_is_not_believed_and_nothing_is_written() -> None:
    proto = parse("g (float[2,3] x) => (float[7,7] y) { h = Relu(x) y = Relu(h) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [9, 9]))
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString()
    shapes = Shapes.infer(model)
    assert [shapes.dims(node.outputs[0]) for node in model.graph] == [(2, 3), (2, 3)]
    assert ir.to_proto(model).SerializeToString() == before


def test_outputs_of_unknown_operators_are_what_the_file_says() -> None:
    node = helper.make_node("Mystery", ["x"], ["y"], domain="elsewhere")
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [4, "n"])
    model = ir.from_proto(helper.make_model(helper.make_graph([node], "g", [x], [y])))
    shapes, value = Shapes.infer(model), model.graph.outputs[0]
    assert shapes.dtype(value) is ir.DataType.INT32
    assert shapes.dims(value)[0] == 4
    assert shapes.dims(value)[1] != "n"


def test_branches_agree_or_are_unknown() -> None:
    text = """g (bool c, float[a,4] x, float[a,5] z) => (float[k,l] y)
      { y = If(c) <then_branch = t () => (float[m,n] p) { p = Relu(x) },
                   else_branch = e () => (float[m,n] q) { q = Relu(z) }> }"""
    shapes, values = facts(text)
    first, second = shapes.dims(values["y"])
    assert first == "a" and second not in (4, 5)


def test_a_function_is_inferred_for_each_call() -> None:
    functions = '<domain: "local", opset_import: ["" : 17]> twice (v) => (w) { w = Concat<axis=0>(v, v) }'
    text = "g (float[a] x, float[3] z) => (float[k] p, float[l] q) { p = local.twice(x) q = local.twice(z) }"
    shapes, values = facts(text, functions=functions)
    assert shapes.dims(values["p"]) == ("?(2*a)",)
    assert shapes.dims(values["q"]) == (6,)


def test_an_overridable_initializer_is_no_constant() -> None:
    proto = parse("g (float[a] x, int64[1] t) => (float[k] y) <int64[1] t = {6}> { y = Reshape(x, t) }")
    shapes = Shapes.infer(ir.from_proto(proto))
    model = ir.from_proto(proto)
    assert Shapes.infer(model).vector(model.graph.inputs[1]) != (6,)
    assert shapes.dims(next(iter(shapes.model.graph)).outputs[0]) != (6,)


def test_the_normal_form_of_sums_and_products() -> None:
    s = Symbols()
    twice = s.add(s.multiply("a", "b"), s.multiply("b", "a"))
    assert twice == s.multiply(2, s.multiply("b", "a"))
    assert s.quotient(twice, "b") == s.multiply(2, "a")
    assert s.quotient("a", 2) is None
    assert s.subtract(twice, twice) == 0
    assert s.at_least(s.add("a", 1), "a") and not s.at_least("a", s.add("a", 1))
    assert s.divide(-7, 2) == -3


# Random programs over dims: every claim is checked in ONNX Runtime at several sizes, 0 and 1 included.

Pick = Callable[[Sequence[Any]], Any]


def _node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), [output], **attributes)


def _targeted(op_type: str, name: str, tensor: str, numbers: Sequence[str]) -> list[onnx.NodeProto]:
    return [_node("Concat", numbers, f"{name}_t", axis=0), _node(op_type, [tensor, f"{name}_t"], name)]


def _pool(name: str, tensor: str, stride: int) -> list[onnx.NodeProto]:
    window = {"kernel_shape": [2], "strides": [stride], "pads": [1, 0]}
    return [
        _node("Unsqueeze", [tensor, "i0"], f"{name}_u"),
        _node("MaxPool", [f"{name}_u"], f"{name}_p", **window),
        _node("Squeeze", [f"{name}_p", "i0"], name),
    ]


STEPS: dict[str, Callable[[str, str, str, str, str, Pick], list[onnx.NodeProto]]] = {
    "Reshape": lambda n, a, b, p, q, pick: _targeted("Reshape", n, a, [p, q]),
    "Tile": lambda n, a, b, p, q, pick: _targeted("Tile", n, a, [p, q]),
    "Pad": lambda n, a, b, p, q, pick: _targeted("Pad", n, a, ["i0", "i1", p, "i0"]),
    "Slice": lambda n, a, b, p, q, pick: [_node("Slice", [a, p, q, "i0", pick(("i1", "neg", "two"))], n)],
    "Expand": lambda n, a, b, p, q, pick: [_node("Shape", [b], f"{n}_t"), _node("Expand", [a, f"{n}_t"], n)],
    "Pool": lambda n, a, b, p, q, pick: _pool(n, a, pick((1, 2))),
    "Reduce": lambda n, a, b, p, q, pick: [_node("ReduceMax", [a], n, axes=[pick((0, 1))])],
    "Concat": lambda n, a, b, p, q, pick: [_node("Concat", [a, b], n, axis=pick((0, 1)))],
    "Transpose": lambda n, a, b, p, q, pick: [_node("Transpose", [a], n)],
    "Add": lambda n, a, b, p, q, pick: [_node("Add", [a, b], n)],
    "MatMul": lambda n, a, b, p, q, pick: [_node("MatMul", [a, b], n)],
}


@st.composite
def programs(draw: st.DrawFn) -> onnx.ModelProto:
    def pick(pool: Sequence[Any]) -> Any:
        return draw(st.sampled_from(pool))

    constants = {"i0": [0], "i1": [1], "neg": [-1], "two": [2]}
    nodes = [_node("Constant", [], name, value_ints=values) for name, values in constants.items()]
    nodes += [_node("Shape", ["x"], "sx"), _node("Shape", ["z"], "sz")]
    nodes += [_node("Gather", ["sx", "i0"], "d0"), _node("Gather", ["sz", "i1"], "d1")]
    tensors, numbers = ["x", "z"], ["d0", "d1", "neg", "two"]
    for step in range(draw(st.integers(2, 7))):
        name, kind = f"v{step}", pick(("number", *STEPS))
        p, q = pick(numbers), pick(numbers)
        if kind == "number":
            nodes.append(_node(pick(("Add", "Sub", "Mul", "Div", "Min", "Max")), [p, q], name))
            numbers.append(name)
        else:
            nodes += STEPS[kind](name, pick(tensors), pick(tensors), p, q, pick)
            tensors.append(name)
    float32 = onnx.TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(*i) for i in (("x", float32, ["a", "b"]), ("z", float32, ["b", "c"]))
    ]
    outputs = [onnx.ValueInfoProto(name=name) for node in nodes for name in node.output]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _run(proto: onnx.ModelProto, sizes: dict[str, int]) -> dict[str, np.ndarray] | None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    feeds = {
        "x": np.zeros((sizes["a"], sizes["b"]), np.float32),
        "z": np.zeros((sizes["b"], sizes["c"]), np.float32),
    }
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception:  # the program fails at these sizes: it promises nothing there
        return None


def _value(symbols: Symbols, dim: Dim, known: dict[str, int]) -> int | None:
    terms = symbols._polynomial(dim)
    if any(atom not in known for atoms in terms for atom in atoms):
        return None
    return sum(factor * int(np.prod([known[atom] for atom in atoms])) for atoms, factor in terms.items())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(programs(), st.tuples(*[st.integers(0, 4)] * 3))
def test_every_claim_holds_at_run_time(proto: onnx.ModelProto, sizes: tuple[int, int, int]) -> None:
    named = dict(zip("abc", sizes, strict=True))
    results = _run(proto, named)
    if results is None:
        return
    model = ir.from_proto(proto)
    shapes = Shapes.infer(model)
    known = dict(named)
    for node in model.graph:
        for output in node.outputs:
            actual = results[output.name]
            claimed = list(
                zip(shapes.dims(output) or (), actual.shape, strict=shapes.dims(output) is not None)
            )
            vector = shapes.vector(output)
            if vector is not None and actual.dtype == np.int64:
                claimed += list(zip(vector, actual.reshape(-1).tolist(), strict=True))
            for dim, truth in claimed:
                value = _value(shapes.symbols, dim, known)
                if value is None and isinstance(dim, str) and dim not in shapes.symbols._sums:
                    value = known.setdefault(dim, truth)
                assert value is None or value == truth, (output.name, dim, truth)


def test_a_scalar_may_be_reduced_along_axis_0() -> None:
    model = parse("g (float x) => (float[A] y) { y = ReduceMax<axes = [-1]> (x) }", opset=17)
    graph = ir.from_proto(model)
    assert Shapes.infer(graph).dims(graph.graph.outputs[0]) == ()
