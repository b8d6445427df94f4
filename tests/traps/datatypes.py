"""Data types: casts that lose, packed and tiny types, strings."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from tests.traps.kit import Built, ints, model, normal, special, trap

LARGE = np.array([1e30, -1e30, 0.3, 2.0**24 + 1, np.inf], np.float32)


def cast(source: str, *chain: int, values: np.ndarray, last: str) -> Built:
    """Casts in a chain, for a vector of these values."""
    steps = "\n".join(f"c{i + 1} = Cast<to = {to}> (c{i})" for i, to in enumerate(chain))
    count = len(values)
    proto = model(
        f"g ({source}[{count}] c0) => ({last}[{count}] c{len(chain)}) {{ {steps} }}", opset=19, ir_version=9
    )
    return proto, [{"c0": values}]


@trap()
def float_through_int() -> Built:
    return cast(
        "float",
        TensorProto.INT32,
        TensorProto.FLOAT,
        values=np.array([1.7, -1.7, 0.0], np.float32),
        last="float",
    )


@trap()
def float_through_bool() -> Built:
    return cast(
        "float", TensorProto.BOOL, TensorProto.FLOAT, values=np.array([0.3, 0, -2], np.float32), last="float"
    )


@trap()
def double_through_float() -> Built:
    return cast(
        "double", TensorProto.FLOAT, TensorProto.DOUBLE, values=np.array([0.1, 1e300, -0.0]), last="double"
    )


@trap()
def float_through_double() -> Built:
    return cast("float", TensorProto.DOUBLE, TensorProto.FLOAT, values=LARGE, last="float")


@trap()
def float_through_half() -> Built:
    return cast("float", TensorProto.FLOAT16, TensorProto.FLOAT, values=LARGE, last="float")


@trap()
def long_through_int() -> Built:
    return cast("int64", TensorProto.INT32, TensorProto.INT64, values=ints(2**40 + 3, -1, 7), last="int64")


@trap()
def long_through_float() -> Built:
    return cast("int64", TensorProto.FLOAT, TensorProto.INT64, values=ints(2**30 + 1, -1, 7), last="int64")


@trap()
def int_through_bytes() -> Built:
    return cast(
        "int32", TensorProto.UINT8, TensorProto.INT32, values=np.array([300, -1, 7], np.int32), last="int32"
    )


@trap()
def int_through_double_to_bool() -> Built:
    return cast(
        "int32", TensorProto.DOUBLE, TensorProto.BOOL, values=np.array([0, -1, 256], np.int32), last="bool"
    )


@trap()
def long_through_double_to_float() -> Built:
    values = ints(2**53 + 1, (1 << 62) + (1 << 38) + 1, 7)
    return cast("int64", TensorProto.DOUBLE, TensorProto.FLOAT, values=values, last="float")


@trap()
def int_through_long_to_half() -> Built:
    return cast(
        "int32",
        TensorProto.INT64,
        TensorProto.FLOAT16,
        values=np.array([2049, 70000, -5], np.int32),
        last="float16",
    )


@trap()
def bool_through_string() -> Built:
    return cast("bool", TensorProto.STRING, TensorProto.STRING, values=np.array([True, False]), last="string")


@trap()
def saturation_of_float8() -> Built:
    return model(
        """g (float[5] x) => (float[5] y, float[5] z) {
        a = Cast<to = 17, saturate = 0> (x)
        y = Cast<to = 1> (a)
        b = Cast<to = 17, saturate = 1> (x)
        z = Cast<to = 1> (b)
    }""",
        opset=19,
        ir_version=9,
    ), [{"x": LARGE}]


@trap()
def constants_of_float8_and_bfloat16() -> Built:
    brain = helper.make_tensor(
        "b", TensorProto.BFLOAT16, [3], np.array([1, -0.0, 3e38], ml_dtypes.bfloat16).tobytes(), raw=True
    )
    tiny = helper.make_tensor("f", TensorProto.FLOAT8E5M2, [3], b"\x01\x7c\xff", raw=True)
    return model(
        """g (float[3] x) => (float[3] y, float[3] z, float[3] q) {
        a = Cast<to = 1> (b)
        y = Add(x, a)
        c = Cast<to = 1> (f)
        z = Add(x, c)
        d = Reshape(b, shape)
        e = Cast<to = 1> (d)
        q = Add(x, e)
    }""",
        opset=19,
        ir_version=9,
        b=brain,
        f=tiny,
        shape=ints(-1),
    )


@trap()
def packed_constants() -> Built:
    odd = helper.make_tensor("w", TensorProto.INT4, [5], [-8, 7, 1, -1, 3])
    return model(
        """g (float[5] x) => (float[5] y, float[5] z) {
        a = Cast<to = 1> (w)
        y = Add(x, a)
        b = Cast<to = 1> (w)
        z = Mul(x, b)
    }""",
        opset=21,
        ir_version=10,
        w=odd,
    )


@trap()
def constants_from_typed_fields() -> Built:
    half = helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.5, -2.0])
    flags = helper.make_tensor("c", TensorProto.BOOL, [2], [True, False])
    return model(
        """g (float16[2] x) => (float16[2] y, double[2] e) {
        a = Mul(h, h)
        b = Where(c, a, x)
        y = Add(b, h)
        e = Add(d, d)
    }""",
        h=half,
        c=flags,
        d=helper.make_tensor("d", TensorProto.DOUBLE, [2], [0.1, 0.2]),
    )


@trap()
def neutral_elements_and_special_values() -> Built:
    return special(
        model(
            """g (float[6] x) => (float[6] y, float[6] z, float[6] q) {
        y = Mul(x, one)
        z = Div(x, one)
        q = Pow(x, one)
    }""",
            one=np.ones(1, np.float32),
        )
    )


@trap()
def strings_pass() -> Built:
    return model(
        """g (string[N] x, bool c) => (string[N] y, string[M] z) {
        a = Identity(x)
        y = Where(c, a, e)
        b = Concat<axis = 0> (e, e)
        z = Concat<axis = 0> (b, x)
    }""",
        e=helper.make_tensor("e", TensorProto.STRING, [1], ["\N{SNOWMAN}".encode()]),
    )


@trap()
def doubles_keep_their_digits() -> Built:
    return model(
        """g (double[2,1,3,3] x) => (double[2,1,3,3] y) {
        a = Pow(k, third)
        b = Mul(x, a)
        y = Sqrt(c)
        c = Abs(b)
    }""".replace("y = Sqrt(c)\n        c = Abs(b)", "c = Abs(b) y = Sqrt(c)"),
        k=np.array(2.0),
        third=np.array(1 / 3),
    )


@trap()
def equal_bytes_of_different_types() -> Built:
    return model(
        """g (float[2] x, int32[2] i) => (float[2] y, int32[2] j, float[2] z) {
        y = Add(x, f)
        j = Add(i, n)
        z = Div(x, m)
    }""",
        f=np.zeros(2, np.float32),
        n=np.zeros(2, np.int32),
        m=np.full(2, -0.0, np.float32),
    )


@trap()
def large_equal_and_nearly_equal_weights() -> Built:
    near = normal(64, 64)
    near[40, 40] += 1
    return model(
        """g (float[N,64] x) => (float[N,64] y) {
        a = Add(x, u)
        b = Mul(a, v)
        y = Sub(b, w)
    }""".replace("[N,64]", "[64,64]"),
        u=normal(64, 64),
        v=normal(64, 64),
        w=near,
    )
