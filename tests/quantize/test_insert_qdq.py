"""A quantized model computes, without optimization, exactly what its scheme means; optimized, it fuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from graphopt.interface import Interface, differences
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.proof.executed import Executed
from graphopt.proof.profile import profile
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.audit import audit
from graphopt_passes.quantize.insert_qdq import drop_unused, insert_qdq
from graphopt_passes.quantize.placement import Placement, consistent, saturates
from graphopt_passes.quantize.scheme import Grid, IntegerWeight, Scheme
from tests.quantize.networks import images, sentences
from tests.quantize.simulation import Simulation, grids_of
from tests.support import compute, serialized

Feeds = Mapping[str, Any]


def feeds_of(proto: onnx.ModelProto, seed: int, size: float = 1.0) -> Feeds:
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in proto.graph.initializer}
    shapes = {
        port.name: [dim.dim_value or 1 for dim in port.type.tensor_type.shape.dim]
        for port in proto.graph.input
        if port.name not in constants
    }
    found: dict[str, Any] = {
        name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()
    }
    special = {"shape": np.array([-1, 8]), "c": np.array(seed % 2 == 0)}
    return found | {name: value for name, value in special.items() if name in found}


def quantized(
    proto: onnx.ModelProto, scheme: Scheme, worker: Worker, keep: frozenset[str] = frozenset()
) -> Model:
    """The model with this scheme; it must be valid, and have the interface that it had."""
    model = Model.of(proto)
    run = Run(CPU, worker, keep=keep)
    insert_qdq(model, run, Placement(model, run), scheme)
    drop_unused(model)
    after = serialized(model)
    onnx.checker.check_model(after, full_check=True)
    assert differences(Interface.of(proto), Interface.of(after)) == []
    return model


def simulation(proto: onnx.ModelProto, scheme: Scheme, worker: Worker) -> Simulation:
    return Simulation(proto, Placement(Model.of(proto), Run(CPU, worker)), scheme)


def assert_means(proto: onnx.ModelProto, scheme: Scheme, worker: Worker, seeds: int = 2) -> Model:
    """The quantized model gives what the simulation gives; the seeds also bring numbers beyond the grids."""
    model = quantized(proto, scheme, worker)
    simulated, after = simulation(proto, scheme, worker), serialized(model)
    for seed in range(seeds):
        feeds = feeds_of(proto, 100 + seed, size=1.0 + seed)
        for old, new in zip(simulated.run(feeds), compute(after, feeds), strict=True):
            np.testing.assert_array_equal(new, old)
    return model


def whole(proto: onnx.ModelProto, worker: Worker, **facts: Any) -> Scheme:
    """The scheme with every part that makes sense on integers, on the ranges of one sample."""
    placement = Placement(Model.of(proto), Run(CPU, worker))
    grids = grids_of(proto, feeds_of(proto, 0))
    fit = [
        name
        for name, part in placement.parts.items()
        if saturates(part, (grid := grids[part.outputs[0].name or ""]).low, grid.high)
    ]
    return Scheme(consistent(placement, fit), grids, **facts)


def optimized(model: Model, feeds: Feeds) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return list(ort.InferenceSession(serialized(model).SerializeToString(), options).run(None, dict(feeds)))


def weighted(text: str, opset: int = 17, functions: str = "", **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A model from its text, with random constants of these names and shapes."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(_header(opset, functions) + text + "\n" + functions)
    for name, shape in shapes.items():
        data = (0.5 * rng.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(data, name))
    onnx.checker.check_model(model)
    return model


def _header(opset: int, functions: str) -> str:
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    return f"<ir_version: 8, opset_import: [{imports}]> "


@pytest.mark.parametrize("scale", ["m = Mul(c, h)  s = Div(m, six)", "d = Div(h, six)  s = Mul(c, d)"])
def test_hard_swish_runs_on_integers(scale: str, worker: Worker) -> None:
    """x · clip(x + 3, 0, 6) / 6 with two readers: the division is only a step of the grid."""
    numbers = {"zero": 0, "three": 3, "six": 6}
    constants = " ".join(f"{k} = Constant<value = float {{{v}}}>()" for k, v in numbers.items())
    proto = weighted(
        f"""agraph (float[1,8,6,6] x) => (float[1,8,6,6] y) {{ {constants}
        c = Conv<pads = [1,1,1,1]>(x, w)  a = Add(c, three)  h = Clip(a, zero, six)  {scale}
        p = Conv<pads = [1,1,1,1]>(s, v)  q = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(s)
        t = Add(p, q)  y = Conv<pads = [1,1,1,1]>(t, v) }}""",
        w=(8, 8, 3, 3),
        v=(8, 8, 3, 3),
    )
    model = assert_means(proto, whole(proto, worker), worker)
    executed = Executed.of(model, worker=worker, threads=1)
    assert audit(executed).green
    ran = {node.op_type for node in executed.nodes()}
    assert not {"Div", "Mul", "Clip", "Conv", "Add"} & ran
    assert sum(node.op_type == "QuantizeLinear" for node in executed.nodes()) == 1


# Random networks.

NETWORKS = [(kind, seed, (13, 17, 21)[seed % 3]) for kind in (images, sentences) for seed in range(12)]


@pytest.mark.parametrize(("kind", "seed", "opset"), NETWORKS)
def test_any_choice_of_parts_means_what_the_scheme_says(
    kind: Any, seed: int, opset: int, worker: Worker
) -> None:
    proto = kind(seed, opset).model()
    names = list(Placement(Model.of(proto), Run(CPU, worker)).parts)
    rng = np.random.default_rng(seed)
    chosen = frozenset(name for name in names if rng.random() < 0.6)
    assert_means(proto, Scheme(chosen, grids_of(proto, feeds_of(proto, 0))), worker)


@pytest.mark.parametrize(("kind", "seed", "opset"), NETWORKS)
def test_everything_on_integers_fuses(kind: Any, seed: int, opset: int, worker: Worker) -> None:
    proto = kind(seed, opset).model()
    scheme = whole(proto, worker)
    model = assert_means(proto, scheme, worker)
    found = audit(Executed.of(model, worker=worker, threads=1))
    assert [str(problem) for problem in found.problems if problem.kind != "useless"] == []
    # The kernels round differently here and there: by far less than what quantization costs.
    feeds = feeds_of(proto, 0)
    exact, plain, fast = compute(proto, feeds), compute(serialized(model), feeds), optimized(model, feeds)
    for x, y, z in zip(exact, plain, fast, strict=True):
        assert np.square(z - x).sum() <= 2 * np.square(y - x).sum() + 1e-9 * np.square(x).sum()


def test_weights_and_biases_of_the_scheme_are_used(worker: Worker) -> None:
    proto = weighted(
        """agraph (float[1,4,6,6] x) => (float[1,4,6,6] y)
        { a = Conv<pads = [1,1,1,1]>(x, w)  r = Relu(a)  y = Conv(r, v) }""",
        w=(4, 4, 3, 3),
        v=(4, 4, 1, 1),
    )
    plain = whole(proto, worker)
    rng = np.random.default_rng(0)
    weights = {
        "a": IntegerWeight(
            rng.integers(-90, 90, (4, 4, 3, 3)).astype(np.int8), np.float32([0.02, 0.01, 0.03, 0.02]), 0
        ),
        "y": IntegerWeight(rng.integers(-90, 90, (4, 4, 1, 1)).astype(np.int8), np.float32([0.02]), 0),
    }
    biases = {name: rng.standard_normal(4).astype(np.float32) for name in ("a", "y")}
    scheme = Scheme(plain.nodes, plain.grids, weights, biases)
    assert scheme.nodes == {"a", "y"}
    assert_means(proto, scheme, worker)


# Graphs that need care.

CASES = {
    "two layers share a weight": weighted(
        """agraph (float[1,4,6,6] x) => (float[1,4,6,6] y)
        { a = Conv<pads = [1,1,1,1]>(x, w)  y = Conv<pads = [1,1,1,1]>(a, w) }""",
        w=(4, 4, 3, 3),
    ),
    "a Gemm and a MatMul share a weight": weighted(
        """agraph (float[3,4] x) => (float[3,4] y)
        { a = Gemm<transB = 1>(x, w)  b = MatMul(a, w)  y = Gemm(b, w, c) }""",
        w=(4, 4),
        c=(4,),
    ),
    "all names are taken": weighted(
        """agraph (float[1,4,6,6] x) => (float[1,4,6,6] y, float[1,4,6,6] y_float, float[1,4,6,6] y_quantized)
        { y = Conv<pads = [1,1,1,1]>(x, w)  y_float = Tanh(y)  y_quantized = Neg(y)
          y_dequantized = Exp(y)  y_scale = Sin(y)  y_zero_point = Cos(y)  w_quantized = Relu(y) }""",
        w=(4, 4, 3, 3),
    ),
    "outputs in the middle": weighted(
        """agraph (float[1,4,6,6] x) => (float[1,4,6,6] a, float[1,4,6,6] r, float[1,4,6,6] y)
        { a = Conv<pads = [1,1,1,1]>(x, w)  r = Relu(a)  y = Conv<pads = [1,1,1,1]>(r, w) }""",
        w=(4, 4, 3, 3),
    ),
    "an output that several read": weighted(
        """agraph (float[1,4,6,6] x) => (float[1,4,6,6] a, float[1,4,6,6] y, float[1,4,6,6] z)
        { a = Conv<pads = [1,1,1,1]>(x, w)  t = Tanh(a)  y = Conv<pads = [1,1,1,1]>(a, w)  z = Add(t, a) }""",
        w=(4, 4, 3, 3),
    ),
    "an input read twice": weighted(
        """agraph (float[4,4] x) => (float[4,4] y, float[4,4] z, float[4,4] t)
        { y = MatMul(x, x)  z = Gemm(x, w)  t = Tanh(x) }""",
        w=(4, 4),
    ),
    "a sum of twice the same": weighted(
        """agraph (float[3,4] x) => (float[3,4] y)
        { a = MatMul(x, w)  b = Add(a, a)  c = Mul(b, b)  y = Gemm(c, w) }""",
        w=(4, 4),
    ),
    "the same constant twice": weighted(
        """agraph (float[3,4] x) => (float[3,4] y)
        { a = MatMul(x, w)  b = Concat<axis = 0>(k, a, k)  y = Gemm(b, w) }""".replace("[3,4] y", "[5,4] y"),
        w=(4, 4),
        k=(1, 4),
    ),
    "no bias, said explicitly": weighted(
        """agraph (float[1,4,6,6] x) => (float[1,4,6,6] y) { y = Conv<pads = [1,1,1,1]>(x, w, ) }""",
        w=(4, 4, 3, 3),
    ),
    "pieces": weighted(
        """agraph (float[1,8,6,6] x) => (float[1,4,6,6] y, float[1,4,6,6] z)
        { a = Conv(x, w)  l, r = Split<axis = 1>(a)  y = Conv(l, v)  z = Conv(r, v) }""",
        opset=13,
        w=(8, 8, 1, 1),
        v=(4, 4, 1, 1),
    ),
    "movers behind movers": weighted(
        """agraph (float[1,8,6,6] x, int64[2] shape) => (float[n,m] y)
        { a = Conv(x, w)  b = MaxPool<kernel_shape = [2,2]>(a)  c = Transpose<perm = [0,2,3,1]>(b)
          d = Reshape(c, shape)  y = Gemm(d, v) }""",
        w=(8, 8, 1, 1),
        v=(8, 4),
    ),
    "a body that captures": weighted(
        """agraph (float[1,4,6,6] x) => (float[1,4,6,6] y)
        { a = Conv<pads = [1,1,1,1]>(x, w)  m = ReduceMax<keepdims = 0>(a)  c = Greater(m, zero)
          y = If(c) <
            then_branch = agraph () => (float[1,4,6,6] t)
              { p = Tanh(a)  q = Conv<pads = [1,1,1,1]>(p, w)  r = Relu(q)
                t = Conv<pads = [1,1,1,1]>(r, w) },
            else_branch = agraph () => (float[1,4,6,6] e)
              { e = Conv<pads = [1,1,1,1]>(a, w) }> }""",
        w=(4, 4, 3, 3),
        zero=(),
    ),
    "a body that captures an input": weighted(
        """agraph (float[1,4,6,6] x, bool c) => (float[1,4,6,6] y)
        { b = If(c) <then_branch = agraph () => (float[1,4,6,6] t) { t = Tanh(x) },
            else_branch = agraph () => (float[1,4,6,6] e) { e = Neg(x) }>
          z = Conv<pads = [1,1,1,1]>(x, w)  y = Add(z, b) }""",
        w=(4, 4, 3, 3),
    ),
}


@pytest.mark.parametrize("proto", CASES.values(), ids=CASES.keys())
def test_graphs_that_need_care(proto: onnx.ModelProto, worker: Worker) -> None:
    names = frozenset(Placement(Model.of(proto), Run(CPU, worker)).parts)
    assert names
    assert_means(proto, Scheme(names, every_grid(proto)), worker)


def every_grid(proto: onnx.ModelProto) -> Mapping[str, Grid]:
    """Grids for all values of all graphs; those of bodies are not measured."""
    inner = [
        name
        for node in proto.graph.node
        for attribute in node.attribute
        for made in attribute.g.node
        for name in made.output
    ]
    return {name: Grid.of(-3, 4) for name in inner} | grids_of(proto, feeds_of(proto, 0))


def test_quantized_outputs_are_known_by_their_names(worker: Worker) -> None:
    """The float behind an output has to get another name, which neither audit nor profile tells."""
    proto = CASES["an output that several read"]
    model = quantized(proto, Scheme(frozenset("ayz"), every_grid(proto)), worker)
    assert audit(Executed.of(model, worker=worker, threads=1)).fused == {"a", "y", "z"}
    found = profile(model, feeds_of(proto, 0), worker=worker, threads=1, budget_s=0.05)
    assert set(found.units) == {"a", "t", "y", "z"}
    assert set(found.conversions) == {"x", "a", "t", "y", "z"}
    broken = CASES["outputs in the middle"]  # a Relu has no kernel of its own
    model = quantized(broken, Scheme(frozenset("ay"), every_grid(broken)), worker)
    problems = audit(Executed.of(model, worker=worker, threads=1)).problems
    assert {problem.unit for problem in problems} == {"a"}


def test_bodies_are_quantized_too(worker: Worker) -> None:
    proto = CASES["a body that captures"]
    assert set(Placement(Model.of(proto), Run(CPU, worker)).parts) == {"a", "q", "t"}


def test_what_a_layer_with_a_range_of_zero_gives(worker: Worker) -> None:
    """A dead input: its grid has a step of one, and nothing divides by zero."""
    proto = CASES["two layers share a weight"]
    grids = {"x": Grid.of(0, 0), "a": Grid.of(0, 1e-35), "y": Grid.of(-1, 1)}
    assert_means(proto, Scheme(frozenset("ay"), grids), worker)


def test_functions_are_left_alone(worker: Worker) -> None:
    body = (
        """<domain: "local", opset_import: ["" : 17]> layer (x, w) => (y) { a = MatMul(x, w)  y = Relu(a) }"""
    )
    proto = weighted(
        "agraph (float[3,4] x) => (float[3,4] y) { a = local.layer(x, w)  y = Gemm(a, w) }",
        functions=body,
        w=(4, 4),
    )
    grids = {name: Grid.of(-3, 4) for name in "axy"}
    model = quantized(proto, Scheme(frozenset({"y"}), grids), worker)
    (function,) = serialized(model).functions
    assert [node.op_type for node in function.node] == ["MatMul", "Relu"]
    assert [node.input for node in function.node] == [node.input for node in proto.functions[0].node]


def test_kept_nodes_stay_as_they_are(worker: Worker) -> None:
    proto = CASES["two layers share a weight"]
    run = Run(CPU, worker, keep=frozenset({"Conv"}))
    assert not Placement(Model.of(proto), run).parts


def test_large_biases_get_scales_that_hold_them(worker: Worker) -> None:
    proto = weighted("agraph (float[3,4] x) => (float[3,4] y) { y = Gemm(x, w, c) }", w=(4, 4), c=(4,))
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32([3e5, -1, 0, 4e4]), "c"))
    scheme = Scheme(frozenset("y"), {"x": Grid.of(0, 1e-3), "y": Grid.of(0, 1)})
    after = serialized(quantized(proto, scheme, worker))
    feeds = {"x": np.zeros((3, 4), np.float32)}
    np.testing.assert_allclose(compute(after, feeds)[0], compute(proto, feeds)[0], rtol=1e-6, atol=1e-7)


def test_nothing_unused_is_left(worker: Worker) -> None:
    for proto in CASES.values():
        scheme = Scheme(frozenset(Placement(Model.of(proto), Run(CPU, worker)).parts), every_grid(proto))
        after = serialized(quantized(proto, scheme, worker)).graph
        bodies = [attribute.g for node in after.node for attribute in node.attribute]
        read = {name for graph in (after, *bodies) for node in graph.node for name in node.input}
        assert {tensor.name for tensor in after.initializer} <= read
