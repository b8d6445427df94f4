"""Draws of elementwise operators: activations, broadcast arithmetic, comparisons, casts."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tools.fuzz.builder import Array, Builder, Value

FLOATS = "float32 float32 float16 float64"
INTS = "int64 int32 uint8"
NUMBERS = f"{FLOATS} {INTS}"
KINDS = ("float32", "float32", "float16", "float64", "int64", "int32", "uint8", "bool")
# Comparisons of rounded numbers would be differences that no one made.
EXACT = f"{INTS} bool"


def other_operand(b: Builder, x: Value) -> Value:
    """A value that broadcasts with x, perhaps beyond its shape: another one, or a constant."""
    if b.chance(0.4):
        return b.pick(x.kind)
    return b.constant(drawn(b, x.kind, broadcastable(b, x)))


def broadcastable(b: Builder, x: Value) -> list[int]:
    """Dims that broadcast with x; a dim that varies becomes 1."""
    dims = [n if s and b.chance(0.6) else 1 for n, s in zip(x.shape, x.static, strict=True)]
    dims = dims[b.integer(0, x.rank) :]
    return [*([b.integer(1, 2)] if b.chance(0.1) else []), *[1] * b.integer(0, x.rank - len(dims)), *dims]


def drawn(b: Builder, kind: str, dims: list[int]) -> Array:
    """Constants: neutral ones often, as models have them."""
    dtype = np.dtype(kind)
    style = b.integer(0, 4)
    if style < 3:
        return np.full(dims, (0, 1, 2)[style]).astype(dtype)
    if dtype.kind == "f":
        return np.asarray(b.rng.normal(size=dims)).astype(dtype)
    return np.asarray(b.rng.integers(0, 4, dims)).astype(dtype)


def activation(b: Builder) -> None:
    """An operator of one float."""
    name = b.choice(("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Identity", "LeakyRelu", "Softmax", "Exp"))
    b.emit(name, b.pick(FLOATS))


def rounding(b: Builder) -> None:
    """An operator that jumps, on inputs of the model: what comes before it must be exact."""
    inputs = {info.name for info in b.scopes[0].inputs}
    b.emit(b.choice(("Floor", "Ceil", "Round", "Sign")), b.pick(FLOATS, lambda v: v.name in inputs))


def integer_unary(b: Builder) -> None:
    """An operator of one integer."""
    b.emit(b.choice(("Abs", "Neg", "Identity", "Sign")), b.pick("int64 int32"))


def twice(b: Builder) -> None:
    """An operator that cancels itself, or does nothing the second time."""
    x = b.pick()
    kinds = {"b": ("Not",), "f": ("Neg", "Relu", "Abs"), "i": ("Neg", "Abs"), "u": ("Identity",)}
    op_type = b.choice(kinds[x.array.dtype.kind])
    b.emit(op_type, b.emit(op_type, x))


def clip(b: Builder) -> None:
    """Clip with one bound, both, or none."""
    x = b.pick(FLOATS)
    low, high = (b.constant(np.array(n, x.kind)) if b.chance(0.7) else None for n in (-0.5, 1.5))
    b.emit("Clip", x, low, high)


def binary(b: Builder) -> None:
    """Arithmetic with broadcasting."""
    x = b.pick(NUMBERS)
    y = other_operand(b, x)
    op_type = b.choice(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"))
    if op_type in ("Div", "Pow"):
        y = b.constant(np.maximum(np.abs(drawn(b, x.kind, broadcastable(b, x))), 1).astype(x.kind))
    pair = (x, y) if op_type in ("Div", "Pow") or b.chance(0.7) else (y, x)
    b.emit(op_type, *pair)


def affine(b: Builder) -> None:
    """x·a + b in one of its forms."""
    x = b.pick(FLOATS)
    for op_type in b.choice((("Mul", "Add"), ("Add", "Mul"), ("Sub", "Div"), ("Mul",), ("Add", "Add"))):
        data = drawn(b, x.kind, broadcastable(b, x))
        y = b.constant(np.where(data == 0, 0.5, data).astype(x.kind) if op_type == "Div" else data)
        x = b.emit(op_type, *((x, y) if op_type == "Div" or b.chance(0.7) else (y, x)))


def comparison(b: Builder) -> None:
    """A comparison of integers."""
    x = b.pick(INTS)
    b.emit(b.choice(("Equal", "Less", "Greater")), x, other_operand(b, x))


def logic(b: Builder) -> None:
    """And, Or, Xor, Not."""
    x = b.pick("bool")
    op_type = b.choice(("And", "Or", "Xor", "Not"))
    b.emit(op_type, *((x,) if op_type == "Not" else (x, other_operand(b, x))))


def where(b: Builder) -> None:
    """Where, its condition a constant half of the time."""
    x = b.pick()
    condition = b.pick("bool") if b.chance(0.5) else b.constant(drawn(b, "bool", broadcastable(b, x)))
    pair = [x, other_operand(b, x)]
    b.emit("Where", condition, *(pair if b.chance(0.5) else pair[::-1]))


def cast(b: Builder) -> None:
    """One or two Casts; floats become floats only, as their rounding must not jump."""
    x = b.pick()
    for _ in range(b.integer(1, 2)):
        kind = b.choice([k for k in KINDS if x.array.dtype.kind != "f" or k.startswith("float")])
        x = b.emit("Cast", x, to=int(helper.np_dtype_to_tensor_dtype(np.dtype(kind))))


def variadic(b: Builder) -> None:
    """Sum, Mean, Max, Min of one to three."""
    x = b.pick(FLOATS)
    others = [other_operand(b, x) for _ in range(b.integer(0, 2))]
    b.emit(b.choice(("Sum", "Mean", "Max", "Min")), x, *others)


def dropout(b: Builder) -> None:
    """Dropout in inference; its mask only in opsets that give it."""
    b.emit("Dropout", b.pick(FLOATS), outputs=b.integer(1, 2))


def cumulative(b: Builder) -> None:
    """CumSum along an axis."""
    x = b.pick("float32 int64", lambda v: v.rank > 0)
    b.emit("CumSum", x, b.constant(np.array(b.integer(-x.rank, x.rank - 1))))


DRAWS = {
    activation: 4,
    rounding: 1,
    integer_unary: 1,
    twice: 1,
    clip: 1,
    binary: 6,
    affine: 4,
    comparison: 2,
    logic: 2,
    where: 2,
    cast: 3,
    variadic: 1,
    dropout: 1,
    cumulative: 0.5,
}
