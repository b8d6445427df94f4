"""Quantized weights stay small, and what annotates them stays true."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.traps.kit import ROUNDING, Built, ints, model, normal, scalar, trap

INT8 = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)
SCALE = np.array(0.1, np.float32)
ZERO = np.array(3, np.int8)


@trap(rtol=ROUNDING, keeps={"DequantizeLinear": 1})
def dequantized_weight() -> Built:
    return model(
        """g (float[N,16] x) => (float[N,16] y) {
        w = DequantizeLinear(q, s, z)
        y = MatMul(x, w)
    }""",
        q=INT8,
        s=SCALE,
        z=ZERO,
    )


@trap(rtol=ROUNDING, keeps={"DequantizeLinear": 1})
def dequantized_weight_of_a_conv_with_batch_norm() -> Built:
    return model(
        """g (float[N,16,4,4] x) => (float[N,16,4,4] y) {
        w = DequantizeLinear<axis = 0> (q, s, z)
        c = Conv(x, w)
        y = BatchNormalization(c, g1, b, m, v)
    }""",
        q=INT8.reshape(16, 16, 1, 1),
        s=np.abs(normal(16)) + 0.1,
        z=np.zeros(16, np.int8),
        g1=normal(16),
        b=normal(16),
        m=normal(16),
        v=np.ones(16, np.float32),
    )


@trap(keeps={"QuantizeLinear": 2, "DequantizeLinear": 2})
def pairs_round() -> Built:
    return model(
        """g (float[N,16] x) => (float[N,16] y, float[16] v) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        y = Relu(d)
        e = QuantizeLinear(w, s, z)
        v = DequantizeLinear(e, s, z)
    }""",
        w=normal(16) * 100,
        s=SCALE,
        z=ZERO,
    )


@trap()
def dequantized_and_quantized_again() -> Built:
    return model(
        """g (uint8[N,16] x) => (uint8[N,16] y, uint8[N,16] z) {
        a = DequantizeLinear(x, s, o)
        y = QuantizeLinear(a, s, o)
        b = DequantizeLinear(x, s, o)
        z = QuantizeLinear(b, s2, o)
    }""",
        s=SCALE,
        s2=np.array(0.2, np.float32),
        o=np.array(7, np.uint8),
    )


@trap(rtol=ROUNDING)
def weight_decompressed_by_hand() -> Built:
    return model(
        """g (float[N,16] x) => (float[N,16] y) {
        f = Cast<to = 1> (q)
        w = Mul(f, s)
        y = MatMul(x, w)
    }""",
        q=INT8,
        s=np.abs(normal(16)),
    )


@trap(rtol=ROUNDING)
def large_weight_decompressed_by_hand() -> Built:
    return model(
        """g (float[N,64] x) => (float[N,64] y) {
        f = Cast<to = 1> (q)
        o = Sub(f, z)
        w = Mul(o, s)
        y = MatMul(x, w)
    }""",
        q=(np.arange(4096) % 255 - 127).astype(np.int8).reshape(64, 64),
        s=np.abs(normal(64)),
        z=scalar(3),
    )


@trap(rtol=ROUNDING, keeps={"DequantizeLinear": 1})
def weight_in_blocks_of_four_bits() -> Built:
    packed = helper.make_tensor("q", TensorProto.INT4, [16, 16], [(i * 7) % 16 - 8 for i in range(256)])
    return model(
        """g (float[N,16] x) => (float[N,16] y) {
        w = DequantizeLinear<axis = 0, block_size = 8> (q, s)
        t = Transpose(w)
        y = MatMul(x, t)
    }""",
        opset=21,
        ir_version=10,
        q=packed,
        s=np.abs(normal(2, 16)),
    )


@trap(rtol=ROUNDING, keeps={"DequantizeLinear": 1})
def transposed_quantized_weight() -> Built:
    return model(
        """g (float[N,16] x) => (float[N,16] y) {
        t = Transpose(q)
        r = Reshape(t, shape)
        w = DequantizeLinear(r, s, z)
        y = MatMul(x, w)
    }""",
        q=INT8,
        s=SCALE,
        z=ZERO,
        shape=ints(16, 16),
    )


@trap()
def dynamic_quantization_of_a_weight() -> Built:
    return model(
        """g (float[16] x) => (float[16] y) {
        q, s, z = DynamicQuantizeLinear(w)
        d = DequantizeLinear(q, s, z)
        y = Add(x, d)
    }""",
        w=normal(16),
    )


@trap(rtol=ROUNDING)
def annotations() -> Built:
    proto = model(
        """g (float[N,4] x) => (float[N,4] y) {
        a = Identity(x)
        k = Add(w, w)
        b = Mul(a, k)
        y = Relu(b)
    }""",
        w=normal(4),
        scale=SCALE,
        scale2=SCALE,
    )
    for name, scale in (("a", "scale"), ("b", "scale2"), ("w", "scale"), ("y", "scale2")):
        annotation = proto.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)
    return proto


@trap()
def microsoft_operators() -> Built:
    proto = model(
        """g (float[N,4,8] x) => (float[N,4,8] y, float[N,4,8] z) {
        a = Identity(x)
        y = Neg(a)
        z = Neg(a)
    }""",
        imports='"com.microsoft" : 1',
        b=normal(8),
    )
    for node, operator in zip(list(proto.graph.node)[1:], ("Gelu", "BiasGelu"), strict=True):
        node.op_type, node.domain = operator, "com.microsoft"
    proto.graph.node[2].input.append("b")
    return proto
