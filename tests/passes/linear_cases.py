"""Random Convs, transposed Convs and Gemms, and how exact a fused one must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.pipeline import Pass
from graphopt.runtime.worker import Worker
from tests.support import compute, ops, run_passes, serialized

EPSILON = {np.float16: 2.0**-10, np.float32: 2.0**-23, np.float64: 2.0**-52}
Array = np.ndarray[Any, Any]


@dataclass
class Case:
    """A model that is built node by node; constants become initializers."""

    dtype: type = np.float32
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)

    def constant(self, name: str, data: Array) -> str:
        self.initializers[name] = np.asarray(data)
        return name

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"make_{output}", **attributes))
        return output

    def model(self, x: Array, output: str, *others: str) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        symbols = [f"d{i}" for i in range(x.ndim)]
        symbols[1] = x.shape[1]
        given = helper.make_tensor_value_info("x", kind, symbols)
        names = (output, *others)
        outputs = [helper.make_tensor_value_info(n, kind, [f"{n}{i}" for i in range(x.ndim)]) for n in names]
        tensors = [numpy_helper.from_array(data, name) for name, data in self.initializers.items()]
        graph = helper.make_graph(self.nodes, "g", [given], outputs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


@dataclass
class Linear:
    """A linear node of a case, its input, and what bounds the rounding of its output."""

    case: Case
    x: Array
    channels: int
    terms: int
    op_type: str


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> Array:
    return rng.standard_normal(shape).astype(dtype)


@st.composite
def linears(draw: st.DrawFn, *op_types: str, source: str = "x", output: str = "y") -> Linear:
    """One linear node from ``source`` to ``output`` with random groups, strides, pads and dtype."""
    op_type = draw(st.sampled_from(op_types))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # ONNX Runtime has Gemm for float64, but no Conv.
    dtypes = list(EPSILON) if op_type == "Gemm" else [np.float16, np.float32]
    case = Case(draw(st.sampled_from(dtypes)))
    bias = draw(st.booleans())
    if op_type == "Gemm":
        return _gemm(draw, case, rng, bias, (source, output))
    group, per_in, per_out = (draw(st.integers(1, 3)) for _ in range(3))
    rank, kernel = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    transposed = op_type == "ConvTranspose"
    first, second = (group * per_in, per_out) if transposed else (group * per_out, per_in)
    inputs = [source, case.constant("w", normal(rng, (first, second, *[kernel] * rank), case.dtype))]
    if bias:
        inputs.append(case.constant("c", normal(rng, (group * per_out,), case.dtype)))
    pads = [draw(st.integers(0, kernel - 1)) for _ in range(2 * rank)]
    case.add(op_type, inputs, output, group=group, pads=pads, strides=[draw(st.integers(1, 2))] * rank)
    x = normal(rng, (2, group * per_in, *[6] * rank), case.dtype)
    return Linear(case, x, group * per_out, per_in * kernel**rank, op_type)


def _gemm(draw: st.DrawFn, case: Case, rng: np.random.Generator, bias: bool, ends: tuple[str, str]) -> Linear:
    depth, width, turned = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.booleans())
    shape = (width, depth) if turned else (depth, width)
    inputs = [ends[0], case.constant("w", normal(rng, shape, case.dtype))]
    if bias:
        c = draw(st.sampled_from([(width,), (1, width), (1,), ()]))
        inputs.append(case.constant("c", normal(rng, c, case.dtype)))
    case.add("Gemm", inputs, ends[1], transB=int(turned), alpha=draw(st.sampled_from([1.0, 0.5])), beta=2.0)
    return Linear(case, normal(rng, (3, depth), case.dtype), width, depth, "Gemm")


def assert_fused(
    proto: onnx.ModelProto, linear: Linear, step: Pass, worker: Worker, *, gone: tuple[str, ...], scale: float
) -> None:
    """The pass removes these operators and moves the outputs by no more than rounding.

    Args:
        scale: a bound on what is summed up in one output element, absolute values taken.
    """
    model, _ = run_passes(proto, step, worker=worker)
    assert not set(gone) & set(ops(model)), ops(model)
    bound = 4 * (linear.terms + 8) * EPSILON[linear.case.dtype] * scale
    feeds = {"x": linear.x}
    for old, new in zip(compute(proto, feeds), compute(serialized(model), feeds), strict=True):
        assert old.dtype == new.dtype and old.shape == new.shape
        assert np.abs(old.astype(np.float64) - new).max(initial=0) <= bound


def largest(linear: Linear) -> float:
    """A bound on the absolute sum behind one output of the linear node."""
    constants = linear.case.initializers
    product = linear.terms * np.abs(linear.x).max() * np.abs(constants["w"]).max()
    return float(product + 2 * np.abs(constants.get("c", np.zeros(1))).max())
