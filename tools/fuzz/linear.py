"""Draws of linear operators, convolutions among them, and of what is fused into them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.fuzz.builder import Array, Builder, Value
from tools.fuzz.elementwise import FLOATS, drawn

CHAINABLE = "float32 float32 float64"


def weight(b: Builder, kind: str, *dims: int) -> Value:
    """Random weights of moderate size."""
    return b.constant(normal(b, kind, *dims))


def normal(b: Builder, kind: str, *dims: int) -> Array:
    """Normal numbers."""
    return np.asarray(b.rng.normal(size=dims) * 0.5).astype(kind)


def image(b: Builder) -> Value:
    """A value that Conv can take: batch, channels of known number, one to three axes."""
    return b.pick(FLOATS, lambda v: v.rank in (3, 4, 5) and v.static[1] and 0 < v.shape[1] <= 12)


def window(b: Builder, x: Value) -> dict[str, Any]:
    """Kernel, strides, dilations and pads."""
    axes = x.rank - 2
    found: dict[str, Any] = {"kernel_shape": [b.integer(1, 3) for _ in range(axes)]}
    if b.chance(0.3):
        found["strides"] = [b.integer(1, 2) for _ in range(axes)]
    if b.chance(0.2):
        found["dilations"] = [b.integer(1, 2) for _ in range(axes)]
    if b.chance(0.5):
        found["pads"] = [b.integer(0, 1) for _ in range(2 * axes)]
    elif b.chance(0.3):
        found["auto_pad"] = b.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))
    return found


def conv(b: Builder) -> Value:
    """Conv, its weights shared with an earlier one at times."""
    x = image(b)
    attributes = window(b, x)
    channels = x.shape[1]
    group = b.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    out = group * b.integer(1, 2)
    w = weight(b, x.kind, out, channels // group, *attributes["kernel_shape"])
    shared = [v for v in b.scope.values if v.constant and v.shape == w.shape and v.kind == w.kind]
    bias = weight(b, x.kind, out) if b.chance(0.5) else None
    return b.emit("Conv", x, b.choice(shared) if b.chance(0.3) else w, bias, group=group, **attributes)


def conv_transpose(b: Builder) -> Value:
    """ConvTranspose."""
    x = image(b)
    attributes = window(b, x)
    channels = x.shape[1]
    group = b.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    per_group = b.integer(1, 2)
    w = weight(b, x.kind, channels, per_group, *attributes["kernel_shape"])
    bias = weight(b, x.kind, group * per_group) if b.chance(0.5) else None
    return b.emit("ConvTranspose", x, w, bias, group=group, **attributes)


def normalize(b: Builder, x: Value) -> Value:
    """BatchNormalization of x."""
    if x.rank < 2 or not x.static[1]:
        return x
    given = [b.constant(normal(b, x.kind, x.shape[1])) for _ in range(3)]
    variance = b.constant((np.abs(normal(b, x.kind, x.shape[1])) + 0.5).astype(x.kind))
    return b.emit("BatchNormalization", x, *given, variance, epsilon=b.choice((1e-5, 1e-2)))


def scale(b: Builder, x: Value) -> Value:
    """Arithmetic with a constant per channel, for the whole tensor, or of an awkward shape."""
    channel = 1 if x.rank > 2 else x.rank - 1
    dims = [x.shape[i] if i == channel and x.static[i] else 1 for i in range(x.rank)]
    dims = b.choice((dims, dims[1:], [], [1], [1] * x.rank, [1, *dims]))
    op_type = b.choice(("Mul", "Add", "Sub", "Div"))
    data = drawn(b, x.kind, dims) if op_type != "Div" else np.asarray(np.abs(normal(b, x.kind, *dims)) + 1)
    pair = [x, b.constant(data.astype(x.kind))]
    return b.emit(op_type, *(pair if op_type == "Div" or b.chance(0.7) else pair[::-1]))


def pad(b: Builder, x: Value) -> Value:
    """Pad with zeros, or in another way."""
    amounts = [b.integer(0, 1) if i % x.rank > 1 else 0 for i in range(2 * x.rank)]
    value = b.constant(np.array(b.choice((0, 0, 1)), x.kind)) if b.chance(0.5) else None
    return b.emit("Pad", x, b.ints(*amounts), value, mode=b.choice(("constant", "constant", "edge")))


def gemm(b: Builder) -> Value:
    """Gemm with a constant matrix."""
    x = b.pick(CHAINABLE, lambda v: v.rank == 2)
    transposed, flipped = int(b.chance(0.2)), int(b.chance(0.4))
    if not x.static[0 if transposed else 1]:
        transposed = 1 - transposed
    inner, outer = x.shape[0 if transposed else 1], b.integer(1, 4)
    w = weight(b, x.kind, *((outer, inner) if flipped else (inner, outer)))
    bias = b.constant(drawn(b, x.kind, b.choice(([outer], [], [1], [1, outer], [1, 1]))))
    attributes: dict[str, Any] = {"transA": transposed, "transB": flipped}
    attributes |= {"alpha": b.choice((1.0, 0.5)), "beta": b.choice((1.0, 2.0, 0.0))} if b.chance(0.5) else {}
    return b.emit("Gemm", x, w, bias if b.chance(0.7) else None, **attributes)


def matmul(b: Builder) -> Value:
    """MatMul with a constant of some rank, on either side."""
    x = b.pick(CHAINABLE, lambda v: v.rank >= 1 and v.static[-1])
    if x.rank > 1 and x.static[-2] and b.chance(0.2):
        return b.emit("MatMul", weight(b, x.kind, b.integer(1, 3), x.shape[-2]), x)
    dims = [x.shape[-1], *([b.integer(1, 4)] if b.chance(0.9) else [])]
    y = b.emit("MatMul", x, weight(b, x.kind, *dims))
    if len(dims) == 1 or b.chance(0.5):
        return y
    bias = b.constant(normal(b, x.kind, *b.choice(([dims[1]], [1, dims[1]], [], [1], [1, 1, dims[1]]))))
    return b.emit("Add", *((y, bias) if b.chance(0.7) else (bias, y)))


def pool(b: Builder) -> None:
    """MaxPool, AveragePool or GlobalAveragePool."""
    x = image(b)
    if b.chance(0.3):
        b.emit("GlobalAveragePool", x)
        return
    attributes = window(b, x)
    attributes.pop("dilations", None)
    b.emit(b.choice(("MaxPool", "AveragePool")), x, **attributes)


def chain(b: Builder) -> None:
    """A linear operator, at times behind a Pad, and what may be fused into it."""
    x = b.choice((conv, conv, conv_transpose, gemm, matmul))(b)
    for _ in range(b.integer(0, 3)):
        x = b.choice((normalize, scale, scale))(b, x)


def padded_conv(b: Builder) -> None:
    """Pad + Conv + BatchNormalization."""
    pad(b, image(b))
    normalize(b, conv(b))


def alone(b: Builder) -> None:
    """BatchNormalization or arithmetic behind anything."""
    b.choice((normalize, scale))(b, b.pick(FLOATS, lambda v: v.rank > 1))


DRAWS = {chain: 8, padded_conv: 2, alone: 1, pool: 1}
