"""deduplicate-initializers: equal bytes, type and shape, in reach of each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.exact.deduplicate_initializers import DeduplicateInitializers
from tests.support import assert_same, ops, parse, run_passes

X = {"x": np.array([1, 2], np.float32)}


def test_equal_ones_merge_into_the_first(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}, float[2] c = {1, 3}>
        { p = Add(x, b) q = Mul(p, a) y = Add(q, c) }"""
    )
    model, run = run_passes(proto, DeduplicateInitializers(), worker=worker)
    assert list(model.ir.graph.initializers) == ["a", "c"]
    assert run.journal.rewrites[0].value == "b"
    assert_same(proto, model, X)


def test_type_and_shape_and_the_sign_of_zero_count(worker: Worker) -> None:
    weights = [np.zeros(4, np.float32), np.zeros(4, np.int32), np.zeros((2, 2), np.float32)]
    weights += [-weights[0], np.full(4, np.nan, np.float32), np.full(4, np.nan, np.float32)]
    tensors = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    nodes = [helper.make_node("Identity", [f"w{i}"], [f"y{i}"]) for i in range(len(weights))]
    outputs = [helper.make_tensor_value_info(f"y{i}", t.data_type, t.dims) for i, t in enumerate(tensors)]
    graph = helper.make_graph(nodes, "g", [], outputs, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model, _ = run_passes(proto, DeduplicateInitializers(), worker=worker)
    assert list(model.ir.graph.initializers) == ["w0", "w1", "w2", "w3", "w4"]
    assert_same(proto, model, {})


def test_overridable_and_output_ones_stay(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x, float[2] a = {1, 2}) => (float[2] y, float[2] b)
        <float[2] b = {1, 2}, float[2] c = {1, 2}> { p = Add(x, a) y = Add(p, c) }"""
    )
    model, run = run_passes(proto, DeduplicateInitializers(), worker=worker)
    assert not run.journal.rewrites
    assert sorted(model.ir.graph.initializers) == ["a", "b", "c"]


def test_a_quantization_annotation_keeps_its_initializer(worker: Worker) -> None:
    proto = parse(
        """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}>
        { p = Add(x, a) y = Add(p, b) }"""
    )
    annotation = proto.graph.quantization_annotation.add(tensor_name="b")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="a")
    model, _ = run_passes(proto, DeduplicateInitializers(), worker=worker)
    assert list(model.ir.graph.initializers) == ["a", "b"]


def test_a_subgraph_uses_what_its_surroundings_hold_but_siblings_share_nothing(worker: Worker) -> None:
    proto = parse(
        """g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> { z = Add(x, w)
          y = If(c) <then_branch = t () => (float[2] p) <float[2] k = {1, 2}, float[2] m = {5, 6}>
                       { s = Add(z, k) p = Add(s, m) },
                     else_branch = e () => (float[2] q) <float[2] k = {5, 6}> { q = Sub(z, k) }> }"""
    )
    model, run = run_passes(proto, DeduplicateInitializers(), worker=worker)
    assert [rewrite.value for rewrite in run.journal.rewrites] == ["k"]
    for condition in (True, False):
        assert_same(proto, model, X | {"c": np.array(condition)})


def test_mapped_weights_are_compared_whole(worker: Worker, tmp_path: Path) -> None:
    weight = np.arange(4096, dtype=np.float32)
    almost = weight.copy()
    almost[2000] += 1  # outside the sampled bytes
    tensors = [numpy_helper.from_array(w, n) for n, w in zip("abc", (weight, almost, weight), strict=True)]
    nodes = [
        helper.make_node("Add", [i, w], [o])
        for i, w, o in (("x", "a", "p"), ("p", "b", "q"), ("q", "c", "y"))
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4096]) for name in "xy"]
    proto = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], tensors), ir_version=8)
    onnx.save(proto, tmp_path / "m.onnx")
    model = Model.load(tmp_path / "m.onnx")
    assert DeduplicateInitializers().apply(model, Run(CPU, worker))
    assert list(model.ir.graph.initializers) == ["a", "b"]
    assert ops(model) == {"Add": 3}
