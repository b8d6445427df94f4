"""Factors per channel: whatever they are, the model computes the same, and they reach what they should."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.places import find_scalings
from tests.support import compute, serialized

C = 6
SHAPES = {
    "v": (C, 4, 1, 1),
    "v2": (C, 4, 1, 1),
    "w": (C, C, 3, 3),
    "d": (C, 1, 3, 3),
    "k": (5, C, 1, 1),
    "k2": (4, 2 * C, 1, 1),
    "k3": (4, C // 2, 1, 1),
    "e": (C, C, 1, 1),
    "b": (C,),
    "b2": (C,),
    "mean": (C,),
    "p": (C, 1, 1),
    "f": (C * 16, 3),
    "m": (4, C),
    "n": (C, 3),
    "n2": (C, 5),
    "q": (4, C),
    "r": (4, C),
    "c3": (3,),
    "two": (),
}
INTEGERS = {"axes": [2], "flat": [1, 4, -1], "heads": [1, 4, 2, 3], "half": [3, 3], "up": [1, 1, 2, 2]}
INTEGERS |= {"edge": [0, 0, 1, 1, 0, 0, 1, 1], "from": [1], "until": [3]}
PADDED = "Conv<pads=[1,1,1,1]>"
IMAGE = {
    "a row": f"a = Conv(x, v, b) r = Relu(a) y = {PADDED}(r, w)",
    "a residual block": f"""a = Conv(x, v, b) c = {PADDED}(a, w, b2) s = Add(a, c) r = Relu(s) y
        = Conv(r, k)""",
    "a shift between": "a = Conv(x, v) s = Add(p, a) r = LeakyRelu(s) y = Conv(r, k)",
    "one number is added": "a = Conv(x, v) s = Add(a, two) y = Conv(s, k)",
    "depthwise between": "a = Conv(x, v) c = Conv<group=6,pads=[1,1,1,1]>(a, d) y = Conv(c, k)",
    "two are joined": "a = Conv(x, v) c = Conv(x, v2, b) j = Concat<axis=1>(a, c) y = Conv(j, k2)",
    "a half is read": "a = Conv(x, v) h, g = Split<axis=1>(a, half) s = Add(h, g) y = Conv(s, k3)",
    "a gate": """a = Conv(x, v) g = GlobalAveragePool(a) h = Conv(g, e) i = Sigmoid(h) j =
        Mul(i, a) y = Conv(j, k)""",
    "a normalization": "n = BatchNormalization(x6, b, b2, mean, var) r = Relu(n) y = Conv(r, k)",
    "pools": """a = Conv(x, v) c = MaxPool<kernel_shape=[2,2]>(a) r =
        AveragePool<kernel_shape=[2,2]>(c) y = Conv(r, k)""",
    "a larger image": 'a = Conv(x, v) u = Resize<mode="linear">(a, , up) z = Pad(u, edge) y = Conv(z, k)',
    "pixels behind each other": "a = Conv(x, v, b) r = Relu(a) s = Flatten(r) y = MatMul(s, f)",
    "the mean of an image": "a = Conv(x, v) s = ReduceMean<axes=[2,3],keepdims=0>(a) y = MatMul(s, n)",
    "turned and cut": """a = Conv(x, v) s = Slice(a, from, until, axes) t =
        Transpose<perm=[0,2,3,1]>(s) y = MatMul(t, n)""",
}
ROWS = {
    "attention": """a = MatMul(x, q) c = MatMul(x, r) ct = Transpose<perm=[0,2,1]>(c) l = MatMul(a, ct)
        s = Softmax(l)
        v = MatMul(x, m) o = MatMul(s, v) y = MatMul(o, n)""",
    "heads": """v = MatMul(x, m) h = Reshape(v, heads) t = Transpose<perm=[0,2,1,3]>(h) s = Softmax(scores)
        o = MatMul(s, t) u = Transpose<perm=[0,2,1,3]>(o) j = Reshape(u, flat) y = MatMul(j, n)""",
    "two readers": """a = MatMul(x, m) b0 = Add(a, b) y0 = MatMul(b0, n) y1 = MatMul(b0, n2) y =
        Concat<axis=2>(y0, y1)""",
    "a written normalization": """a = MatMul(x, m) u = ReduceMean<axes=[-1]>(a) z = Sub(a, u) sq = Mul(z, z)
        w0 = ReduceMean<axes=[-1]>(sq) rt = Sqrt(w0) i = Reciprocal(rt) g = Mul(i, b) h = Mul(z, g)
        t = Add(h, b2)
        y = MatMul(t, n)""",
    "a Gemm": "h = LayerNormalization(rows, b, b2) r = Relu(h) y = Gemm<alpha=0.5>(r, n, c3)",
}
EXPECTED = {"a gate": 1, "depthwise between": 2, "a half is read": 1}


def proto_of(body: str, inputs: str, rng: np.random.Generator) -> onnx.ModelProto:
    """A graph whose constants are drawn; the shape of its output is not stated."""
    text = f"g ({inputs}) => (float[] y) {{ {body} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    made = {name for node in proto.graph.node for name in node.output}
    read = {name for node in proto.graph.node for name in node.input}
    given = {one.name for one in proto.graph.input} | {""}
    for name in sorted(read - made - given):
        proto.graph.initializer.append(numpy_helper.from_array(constant(name, rng), name))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto = onnx.shape_inference.infer_shapes(proto)
    onnx.checker.check_model(proto)
    return proto


def constant(name: str, rng: np.random.Generator) -> np.ndarray:
    if name in INTEGERS:
        return np.array(INTEGERS[name], np.float32 if name == "up" else np.int64)
    if name == "var":
        return rng.uniform(0.5, 2, C).astype(np.float32)
    return np.asarray(rng.standard_normal(SHAPES[name]), np.float32)


INPUTS = "float[2,4,4,4] x, float[2,6,4,4] x6"
ROW_INPUTS = "float[1,4,4] x, float[4,6] rows, float[1,2,4,4] scores"


@pytest.mark.parametrize("name", [*IMAGE, *ROWS])
def test_any_factors_leave_the_outputs(worker: Worker, name: str) -> None:
    rng = np.random.default_rng(len(name))
    body, inputs = (IMAGE[name], INPUTS) if name in IMAGE else (ROWS[name], ROW_INPUTS)
    proto = proto_of(body, inputs, rng)
    feeds = {
        one.name: rng.standard_normal([dim.dim_value for dim in one.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for one in proto.graph.input
    }
    model, run = Model.of(proto), Run(CPU, worker)
    found = list(find_scalings(model, run, "test"))
    assert len(found) == EXPECTED.get(name, 1), (found, run.journal.refusals)
    for scaling in found:
        scaling.divide(model, run, 2.0 ** rng.uniform(-3, 3, scaling.width))
    after = serialized(model)
    onnx.checker.check_model(after)
    [old], [new] = compute(proto, feeds), compute(after, feeds)
    np.testing.assert_allclose(new, old, rtol=0, atol=2e-5 * np.abs(old).max())
    assert changed(proto, after) >= 2


def changed(before: onnx.ModelProto, after: onnx.ModelProto) -> int:
    """How many constants have other bytes."""
    old, new = (constants(proto) for proto in (before, after))
    return sum(old[port] != new[port] for port in old)


def constants(proto: onnx.ModelProto) -> dict[tuple[str, int], bytes]:
    """The bytes of each constant, by the node that reads it and the index of the input."""
    known = {one.name: numpy_helper.to_array(one).tobytes() for one in proto.graph.initializer}
    ports = ((node, at, name) for node in proto.graph.node for at, name in enumerate(node.input))
    return {(node.output[0], at): known[name] for node, at, name in ports if name in known}
