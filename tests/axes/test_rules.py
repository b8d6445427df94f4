"""Each rule, alone between two layers: the cut model equals the masked one, for drawn shapes and cuts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.model import Model
from graphopt_passes.axes import Analysis, groups
from tools.channels import oracle

TOLERANCE = 1e-5


def blocks(text: str) -> dict[str, str]:
    """Texts by the names that stand above them."""
    found = (block.split(":\n", 1) for block in text.strip().split("\n\n"))
    return {name: body for name, body in found}


# Bodies between two 1x1 Convs of c channels on [n, c, h, w]; {c}, {h}, {w} are numbers, weights are drawn.
BODIES = blocks("""
relu:
    y = Relu(x)

residual:
    a = Sigmoid(x)
    y = Add(a, x)

per channel:
    y = Mul(x, W_1_c_1_1)

gate:
    a = GlobalAveragePool(x)
    b = Conv(a, W_c_c_1_1)
    d = Sigmoid(b)
    y = Mul(x, d)

where:
    p = Constant<value = float {{0.0}}>()
    q = Greater(x, p)
    y = Where(q, x, W_c_1_1)

batch norm:
    y = BatchNormalization(x, W_c, V_c, W_c, P_c)

instance norm:
    y = InstanceNormalization(x, W_c, V_c)

prelu:
    y = PRelu(x, W_c_1_1)

depthwise:
    y = Conv<group = {c}>(x, W_c_1_1_1)

in two groups:
    y = Conv<group = 2>(x, W_c_half_1_1)

transposed:
    y = ConvTranspose(x, W_c_c_1_1)

transposed in groups:
    y = ConvTranspose<group = 2>(x, W_c_half_1_1)

max pool:
    y = MaxPool<kernel_shape = [1, 1]>(x)

concat:
    a = Neg(x)
    b = Concat<axis = 1>(x, a)
    y = Conv(b, W_c_double_1_1)

split:
    a, b = Split<axis = 1, num_outputs = 2>(x)
    y = Concat<axis = 1>(b, a)

gated halves:
    a, b = Split<axis = 1, num_outputs = 2>(x)
    d = Mul(a, b)
    y = Conv(d, W_c_half_1_1)

slice:
    s = Constant<value = int64[1] {{1}}>()
    e = Constant<value = int64[1] {{-1}}>()
    a = Slice(x, s, e, s)
    b = Conv(a, W_c_less_1_1)
    y = Add(b, x)

gather:
    i = Constant<value = int64[3] {{2, 0, -1}}>()
    a = Gather<axis = 1>(x, i)
    b = Conv(a, W_c_three_1_1)
    y = Add(b, x)

pad:
    p = Constant<value = int64[8] {{0, 1, 0, 0, 0, 2, 0, 0}}>()
    a = Pad(x, p)
    y = Conv(a, W_c_more_1_1)

transpose:
    a = Transpose<perm = [0, 2, 3, 1]>(x)
    b = MatMul(a, W_c_c)
    y = Transpose<perm = [0, 3, 1, 2]>(b)

shuffle:
    s = Constant<value = int64[5] {{0, 2, {half}, {h}, {w}}}>()
    t = Constant<value = int64[4] {{0, {c}, {h}, {w}}}>()
    a = Reshape(x, s)
    b = Transpose<perm = [0, 2, 1, 3, 4]>(a)
    y = Reshape(b, t)

flatten:
    a = Flatten(x)
    b = MatMul(a, W_pixels_c)
    d = Unsqueeze(b, I_spatial)
    y = Add(x, d)

spread:
    a = DepthToSpace<blocksize = 2>(x)
    y = SpaceToDepth<blocksize = 2>(a)

spread by columns:
    a = DepthToSpace<blocksize = 2, mode = "CRD">(x)
    y = SpaceToDepth<blocksize = 2>(a)

sum:
    a = ReduceSum<keepdims = 1>(x, I_channels)
    y = Mul(x, a)

mean over pixels:
    a = ReduceMean<keepdims = 0>(x, I_spatial)
    b = Unsqueeze(a, I_spatial)
    y = Mul(x, b)

tile:
    r = Constant<value = int64[4] {{1, 2, 1, 1}}>()
    a = Tile(x, r)
    y = Conv(a, W_c_double_1_1)

quantized:
    a = QuantizeLinear<axis = 1>(x, P_c, Z_c)
    y = DequantizeLinear<axis = 1>(a, P_c, Z_c)

resize:
    s = Constant<value = int64[4] {{1, {c}, 4, 4}}>()
    a = Resize(x, , , s)
    y = AveragePool<kernel_shape = [1, 1]>(a)
""")
FROZEN = {
    "softmax": ("y = Softmax<axis = 1>(x)", "normalizes over it"),
    "mean": ("a = ReduceMean(x, I_channels) \n y = Mul(x, a)", "reduces it"),
    "local response": ("y = LRN<size = 3>(x)", "normalizes over it"),
    "cumulated": ("a = Constant<value = int64 {{1}}>() \n y = CumSum(x, a)", "adds up along it"),
    "unknown": ('y = Einsum<equation = "nchw->nchw">(x)', "no rule for this operator"),
    "size": ("s = Shape(x) \n y = Expand(x, s)", "reads its size at run time"),
}


def model(body: str, channels: int, size: tuple[int, int, int], seed: int) -> onnx.ModelProto:
    """Conv, the body, Conv; operands that begin with W, V, P, Z and I are made."""
    rng, (batch, height, width) = np.random.default_rng(seed), size
    sizes = {
        "c": channels, "half": channels // 2, "double": 2 * channels, "less": channels - 2, "three": 3,
        "more": channels + 3, "pixels": channels * height * width, "h": height, "w": width, "1": 1,
    }  # fmt: skip
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[{batch}, 3, {height}, {width}] input) => (float[n, 5, hh, ww] output) {{
            x = Conv(input, W_c_three_1_1, V_c)
            {body.format(**sizes)}
            output = Conv(y, W_five_c_1_1)
        }}"""
    sizes["five"] = 5
    made = onnx.parser.parse_model(text)
    names = {
        name for node in made.graph.node for name in node.input if name[:2] in ("W_", "V_", "P_", "Z_", "I_")
    }
    made.graph.initializer.extend(operand(name, sizes, rng) for name in sorted(names))
    onnx.checker.check_model(made)
    return made


def operand(name: str, sizes: dict[str, int], rng: np.random.Generator) -> onnx.TensorProto:
    if name.startswith("I_"):
        axes = {"I_spatial": [2, 3], "I_channels": [1]}[name]
        return numpy_helper.from_array(np.array(axes, np.int64), name)
    shape = [sizes[part] for part in name.split("_")[1:]]
    if name.startswith("Z_"):
        return numpy_helper.from_array(np.full(shape, 7, np.uint8), name)
    drawn = rng.standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(np.abs(drawn) * 0.01 + 0.01 if name.startswith("P_") else drawn, name)


def cut(proto: onnx.ModelProto, removed: float, seed: int) -> tuple[Analysis, oracle.Facts]:
    whole = Model.of(proto)
    analysis = groups(whole)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"input": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}
    return analysis, oracle.check(whole, oracle.drawn(analysis, removed, seed), feeds)


@pytest.mark.parametrize("name", BODIES)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    quarter=st.integers(1, 4),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    removed=st.sampled_from([0.25, 0.5, 0.9]),
    seed=st.integers(0, 99),
)
def test_the_cut_model_equals_the_masked_one(
    name: str, quarter: int, size: tuple[int, int, int], removed: float, seed: int
) -> None:
    proto = model(BODIES[name], 8 * quarter, size, seed)
    analysis, facts = cut(proto, removed, seed)
    assert analysis.groups
    assert facts.error <= TOLERANCE


@pytest.mark.parametrize("name", FROZEN)
def test_what_cannot_be_cut_is_explained(name: str) -> None:
    body, reason = FROZEN[name]
    analysis, facts = cut(model(body, 8, (2, 3, 3), 0), 0.5, 0)
    assert not analysis.groups
    assert facts.error == 0
    assert any(reason in found.reason and found.width == 8 for found in analysis.frozen)
