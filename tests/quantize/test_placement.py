"""What can be on integers, why not, and what follows from a choice."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.placement import Placement, consistent, saturates
from graphopt_passes.quantize.scheme import Grid
from tests.quantize.networks import images, sentences
from tests.support import parse

FLOATS = {"w": (4, 4), "b": (4,), "k": (4, 4, 1, 1), "stack": (2, 4, 4)}


def place(text: str, worker: Worker, opset: int = 17, keep: str = "") -> Placement:
    """The parts of a graph over random constants w, b, k and stack, and infinite ones."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in FLOATS.items()}
    arrays |= {"mask": np.float32([0, -np.inf, 0, 0]), "holes": np.full((4, 4), np.nan, np.float32)}
    read = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items() if name in read
    )
    onnx.checker.check_model(model)
    return Placement(Model.of(model), Run(CPU, worker, keep=frozenset(keep.split())))


REFUSALS = {
    "alpha": ("y = Gemm<alpha = 0.5>(x, w, b)", "alpha = 0.5"),
    "beta": ("y = Gemm<beta = 2.0>(x, w, b)", "beta = 2.0"),
    "a weight that is computed": ("v = Tanh(x)  y = Gemm(x, v)", "its weight is no constant"),
    "a constant on the left": ("y = MatMul(w, x)", "its weight is no constant"),
    "constants only": ("y = MatMul(w, w)", "its input is a constant"),
    "joined constants": ("y = Add(w, w)", "it reads constants only"),
    "a stack of matrices": ("z = MatMul(x, stack)  y = ReduceMax<axes = [0], keepdims = 0>(z)", "no matrix"),
    "a bias that is computed": ("c = Tanh(x)  y = Gemm(x, w, c)", "its bias is no constant vector"),
    "a bias that is a matrix": ("y = Gemm(x, w, w)", "its bias is no constant vector"),
    "integers": ("i = Cast<to = 6>(x)  j = Add(i, i)  y = Cast<to = 1>(j)", "not compute on float32"),
    "infinite operands": ("y = Add(x, mask)", "not finite"),
    "infinite weights": ("y = Gemm(x, holes)", "not finite"),
    "infinite biases": ("y = Gemm(x, w, mask)", "not finite"),
}


@pytest.mark.parametrize(("nodes", "reason"), REFUSALS.values(), ids=REFUSALS.keys())
def test_reasons_of_refusals(nodes: str, reason: str, worker: Worker) -> None:
    found = place(f"agraph (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", worker)
    assert not found.parts
    (text,) = found.refusals.values()
    assert reason in text
    assert found.refused.keys() == found.refusals.keys()


MAPS = {
    "column-major indices": (
        "y, i = MaxPool<kernel_shape = [1,1], storage_order = 1>(x)  j = Identity(i)",
        "storage_order = 1",
    ),
    "used indices": ("y, i = MaxPool<kernel_shape = [1,1]>(x)  j = Identity(i)", "its indices are used"),
    "blurred sizes": (
        'e = Constant<value = float[4] {1.0,1.0,1.0,1.0}>()  y = Resize<mode = "linear">(x, , e)',
        "mode = linear",
    ),
}


@pytest.mark.parametrize(("nodes", "reason"), MAPS.values(), ids=MAPS.keys())
def test_reasons_of_refusals_of_maps(nodes: str, reason: str, worker: Worker) -> None:
    found = place(f"agraph (float[1,4,4,4] x) => (float[1,4,4,4] y) {{ {nodes} }}", worker)
    assert not found.parts
    (text,) = found.refusals.values()
    assert reason in text


def test_old_opsets_have_no_kernels(worker: Worker) -> None:
    found = place("agraph (float[4,4] x) => (float[4,4] y) { y = MatMul(x, w) }", worker, opset=12)
    assert found.refusals == {"y": "it has an integer kernel from opset 13 on"}


@pytest.mark.parametrize("keep", ["MatMul", "layer"])
def test_kept_nodes_are_refused(keep: str, worker: Worker) -> None:
    text = "agraph (float[4,4] x) => (float[4,4] y) { [layer] y = MatMul(x, w) }"
    assert place(text, worker, keep=keep).refusals == {"y": "it is kept as it is"}


def test_bodies_read_their_own_values(worker: Worker) -> None:
    found = place(
        """agraph (float[4,4] x, bool c) => (float[4,4] y) { y = If(c) <
        then_branch = agraph () => (float[4,4] t) { a = Tanh(x)  t = MatMul(a, w) },
        else_branch = agraph () => (float[4,4] e) { e = MatMul(x, w) }> }""",
        worker,
    )
    assert set(found.parts) == {"t"}
    assert found.refusals == {"e": "it captures 'x' from an outer graph"}


def test_names_that_occur_twice_are_no_parts(worker: Worker) -> None:
    """Branches may call their values alike."""
    branch = "agraph () => (float[4,4] t) { a = Tanh(x)  t = MatMul(a, w) }"
    text = f"""agraph (float[4,4] x, bool c) => (float[4,4] y)
    {{ z = If(c) <then_branch = {branch}, else_branch = {branch}>  y = MatMul(z, w) }}"""
    assert set(place(text, worker).parts) == {"y"}


def test_functions_are_not_looked_into(worker: Worker) -> None:
    body = """<domain: "local", opset_import: ["" : 17]> layer (x) => (y) { y = MatMul(x, x) }"""
    text = "agraph (float[4,4] x) => (float[4,4] y) { y = local.layer(x) }"
    found = Placement(Model.of(parse(text, functions=body)), Run(CPU, worker))
    assert not found.parts
    assert not found.refusals


# What belongs to a layer.

BELONG = {
    "a bias": ("a = MatMul(x, w)  y = Add(a, b)", ["MatMul", "Add"]),
    "a bias on the left": ("a = MatMul(x, w)  y = Add(b, a)", ["MatMul", "Add"]),
    "a bias and a Relu": ("a = MatMul(x, w)  c = Add(a, b)  y = Relu(c)", ["MatMul", "Add", "Relu"]),
    "a Relu": ("a = Gemm(x, w, b)  y = Relu(a)", ["Gemm", "Relu"]),
    "a Clip": ("a = Gemm(x, w)  y = Clip(a, zero, six)", ["Gemm", "Clip"]),
    "a Clip from below": ("a = Gemm(x, w)  y = Clip(a, zero)", ["Gemm", "Clip"]),
    "a Clip without limits": ("a = Gemm(x, w)  y = Clip(a)", ["Gemm", "Clip"]),
    "a Clip that is always positive": ("a = Gemm(x, w)  y = Clip(a, six)", ["Gemm"]),
    "a limit that is computed": ("m = ReduceMax<keepdims = 0>(x)  a = Gemm(x, w)  y = Clip(a, m)", ["Gemm"]),
    "a value that is the limit": (
        "a = Gemm(x, w)  m = ReduceMax<keepdims = 0>(a)  y = Clip(a, zero, m)",
        ["Gemm"],
    ),
    "two readers": ("a = Gemm(x, w)  r = Relu(a)  y = Tanh(a)", ["Gemm"]),
    "two readers of the biased": (
        "a = MatMul(x, w)  c = Add(a, b)  r = Relu(c)  y = Tanh(c)",
        ["MatMul", "Add"],
    ),
    "another curve": ("a = Gemm(x, w)  y = LeakyRelu(a)", ["Gemm"]),
    "no second tail": ("a = Gemm(x, w)  r = Relu(a)  y = Clip(r, zero, six)", ["Gemm", "Relu"]),
}


SCALERS = {
    "a product": ("s = Mul(a, six)", "scaler", 6.0),
    "a product on the left": ("s = Mul(six, a)", "scaler", 6.0),
    "a quotient": ("s = Div(a, six)", "scaler", 1 / 6),
    "a quotient of the constant": ("s = Div(six, a)", None, 1.0),
    "a negative factor": ("s = Mul(a, less)", "free", 1.0),
    "no factor": ("s = Div(a, zero)", None, 1.0),
    "a vector": ("s = Mul(a, b)", "free", 1.0),
    "an axis of its own": ("s = Mul(a, ones)", "free", 1.0),
}


@pytest.mark.parametrize(("node", "role", "factor"), SCALERS.values(), ids=SCALERS.keys())
def test_what_only_scales(node: str, role: str | None, factor: float, worker: Worker) -> None:
    numbers = {"zero": 0.0, "six": 6.0, "less": -2.0}
    constants = " ".join(f"{k} = Constant<value = float {{{v}}}>()" for k, v in numbers.items())
    constants += " ones = Constant<value = float[1,1] {1.0}>()"
    nodes = f"{constants} a = Gemm(x, w)  {node}  y = Gemm(s, w)"
    found = place(f"agraph (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", worker)
    part = found.parts.get("s")
    assert (part.kernel.role if part else None) == role
    if part is not None:
        assert part.factor == pytest.approx(factor)
        assert found.origin(part.outputs[0], {"a", "s", "y"})[1] == pytest.approx(factor)


def test_an_output_of_the_model_is_not_scaled(worker: Worker) -> None:
    nodes = "six = Constant<value = float {6.0}>()  a = Gemm(x, w)  y = Div(a, six)"
    found = place(f"agraph (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", worker)
    assert found.refusals["y"] == "it makes an output of the model"


@pytest.mark.parametrize(
    ("op", "tail"), [("Add", "Relu(s)"), ("Add", "Clip(s, zero, six)"), ("Mul", "Clip(s, zero, six)")]
)
def test_what_belongs_to_a_join(op: str, tail: str, worker: Worker) -> None:
    """As in HardSwish written out: x · clip(x + 3, 0, 6) / 6."""
    limits = "zero = Constant<value = float {0.0}>()  six = Constant<value = float {6.0}>()"
    nodes = f"{limits} a = Gemm(x, w)  s = {op}(a, six)  c = {tail}  m = Mul(a, c)  y = Gemm(m, w)"
    found = place(f"agraph (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", worker)
    assert [node.op_type for node in found.parts["s"].nodes] == [op, tail[:4]]


@pytest.mark.parametrize(("nodes", "belong"), BELONG.values(), ids=BELONG.keys())
def test_what_belongs_to_a_layer(nodes: str, belong: list[str], worker: Worker) -> None:
    limits = "zero = Constant<value = float {0.0}>()  six = Constant<value = float {6.0}>()"
    found = place(f"agraph (float[4,4] x) => (float[4,4] y) {{ {limits} {nodes} }}", worker)
    part = next(part for part in found.parts.values() if part.node.op_type == belong[0])
    assert [node.op_type for node in part.nodes] == belong
    assert (part.bias is not None) == ("b)" in nodes or "(b," in nodes)
    assert part.kernel.float_result == (part.tail is None)
    assert found.makers[part.outputs[0]] is part


def test_outputs_are_not_skipped(worker: Worker) -> None:
    found = place(
        "agraph (float[4,4] x) => (float[4,4] a, float[4,4] y) { a = Gemm(x, w)  y = Relu(a) }", worker
    )
    assert [node.op_type for node in found.parts["a"].nodes] == ["Gemm"]


def test_a_sum_of_values_is_no_bias(worker: Worker) -> None:
    for other in ("x", "a", "w"):
        nodes = f"a = MatMul(x, w)  y = Add(a, {other})"
        found = place(f"agraph (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", worker)
        assert len(found.parts["a"].nodes) == 1


def test_channels_of_weights(worker: Worker) -> None:
    conv = place("agraph (float[1,4,4,4] x) => (float[1,4,4,4] y) { y = Conv(x, k) }", worker)
    assert conv.parts["y"].axis == 0
    for node, axis in (("MatMul(x, w)", 1), ("Gemm(x, w)", 1), ("Gemm<transB = 1>(x, w)", 0)):
        found = place(f"agraph (float[4,4] x) => (float[4,4] y) {{ y = {node} }}", worker)
        assert found.parts["y"].axis == axis
        assert found.parts["y"].inputs == (found.parts["y"].node.inputs[0],)


# What follows from a choice.

CHAIN = """agraph (float[1,4,4,4] x) => (float[1,4,4,4] y, float[1,4,4,4] z)
{ s = Sigmoid(x)  a = Conv(s, k)  t = Transpose<perm = [0,1,3,2]>(a)  p = MaxPool<kernel_shape = [1,1]>(t)
  c = Conv(p, k)  d = Add(p, c)  e = Mul(d, d)  y = Tanh(e)  l = LeakyRelu(a)  m = Transpose(l)
  n = Conv(m, k)  z = Sigmoid(n) }"""


def test_joins_and_movers_stand_between_parts(worker: Worker) -> None:
    found = place(CHAIN, worker)
    assert set(found.parts) == set("satpcdelmnz")
    # x and s are floats' business; nobody reads e and z as integers, nor then d.
    assert consistent(found, found.parts) == set("atpclmn")
    assert consistent(found, set("atpc")) == set("atpc")
    assert consistent(found, set("tpcd")) == set("c")  # one removal strands the next
    assert consistent(found, set("lm")) == frozenset()
    assert consistent(found, ()) == frozenset()


def test_grids_of_a_choice(worker: Worker) -> None:
    found = place(CHAIN, worker)
    assert {value.name for value in found.on_grids(set("atpc"))} == set("satpc")
    assert {value.name for value in found.on_grids(set("c"))} == set("pc")
    assert found.on_grids(()) == []
    p = found.parts["p"].outputs[0]
    assert found.origin(p, set("atpc")) == (found.parts["a"].outputs[0], 1.0)
    assert found.origin(p, set("pc"))[0].name == "t"
    assert found.origin(p, set("atc"))[0].name == "p"


def test_products_may_give_floats(worker: Worker) -> None:
    nodes = "a = MatMul(x, w)  c = Gemm(a, w)  d = Add(c, w)  y = Tanh(d)"
    found = place(f"agraph (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", worker)
    assert {value.name for value in found.on_grids(set("ac"))} == {"x", "a"}
    assert {value.name for value in found.on_grids(set("acd"))} == {"x", "a", "c", "d"}


@pytest.mark.parametrize("seed", range(10))
def test_no_choice_strands_a_part(seed: int, worker: Worker) -> None:
    """Every join or mover that is left reads integers only, and some chosen part reads what it makes."""
    proto = (images if seed % 2 else sentences)(seed, 17).model()
    found = Placement(Model.of(proto), Run(CPU, worker))
    rng = np.random.default_rng(seed)
    for _ in range(20):
        chosen = {name for name in found.parts if rng.random() < 0.7}
        left = consistent(found, chosen)
        assert left <= chosen
        assert consistent(found, left) == left
        layers = {name for name in chosen if found.parts[name].kernel.role == "layer"}
        assert layers <= left
        made = {value for name in left for value in found.parts[name].outputs}
        read = {value for name in left for value in found.parts[name].inputs}
        for name in left - layers:
            part = found.parts[name]
            assert all(value in made for value in part.inputs if g.constant(value) is None)
            assert any(value in read for value in part.outputs)


SATURATION = [
    ("Relu(a)", 0, 7, True),
    ("Relu(a)", -1, 7, False),
    ("Clip(a, zero, six)", 0, 6, True),
    ("Clip(a, zero, six)", 0, 5, True),
    ("Clip(a, zero, six)", 0, 6.1, False),
    ("Clip(a, zero, six)", -0.1, 6, False),
    ("Clip(a, zero)", 0, 99, True),
    ("Clip(a, , six)", -99, 6, True),
    ("Tanh(a)", -9, 9, True),
]


@pytest.mark.parametrize(("tail", "low", "high", "expected"), SATURATION)
def test_which_grids_saturate(tail: str, low: float, high: float, expected: bool, worker: Worker) -> None:
    limits = "zero = Constant<value = float {0.0}>()  six = Constant<value = float {6.0}>()"
    text = f"agraph (float[4,4] x) => (float[4,4] y) {{ {limits} a = Gemm(x, w)  y = {tail} }}"
    part = place(text, worker).parts["a"]
    assert saturates(part, low, high) is expected
    if low == 0 and expected:  # as a grid in float32 has it
        grid = Grid.of(low, high)
        assert saturates(part, grid.low, grid.high)
