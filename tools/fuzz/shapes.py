"""Draws of operators that compute shapes, or move and select elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.fuzz.builder import Builder, Value

FAR = 2**63 - 1


def axes_given(b: Builder, op_type: str, x: Value, axes: list[int], since: int, **attributes: Any) -> Value:
    """A node whose axes are an input since some opset, an attribute before."""
    if b.opset < since:
        return b.emit(op_type, x, axes=axes, **attributes)
    return b.emit(op_type, x, b.ints(*axes), **attributes)


def some_axis(b: Builder, x: Value) -> int:
    """An axis, counted from either end."""
    return b.integer(-x.rank, x.rank - 1)


def shaped(b: Builder, least: int = 1) -> Value:
    """A value of a rank of at least this."""
    return b.pick(where=lambda v: v.rank >= least)


def shape(b: Builder) -> Value:
    """Shape, since opset 15 also of some axes."""
    x = shaped(b)
    if b.opset >= 15 and b.chance(0.2):
        start = b.integer(0, x.rank - 1)
        return b.emit("Shape", x, start=start, end=b.integer(start + 1, x.rank))
    return b.emit("Shape", x)


def dim(b: Builder, x: Value, axis: int) -> Value:
    """One dim of x, a vector of one element, in one of the ways that exporters write it."""
    sizes = b.emit("Shape", x)
    if b.chance(0.3):
        return b.emit("Gather", sizes, b.ints(axis))
    if b.chance(0.3):
        return b.emit("Slice", sizes, b.ints(axis), b.ints(axis + 1), b.ints(0))
    one = b.emit("Gather", sizes, b.constant(np.array(axis)))
    return axes_given(b, "Unsqueeze", one, [0], since=13)


def arithmetic(b: Builder) -> None:
    """Sums and products of dims."""
    x = b.pick("int64", lambda v: v.rank <= 1)
    y = b.pick("int64", lambda v: v.rank <= 1) if b.chance(0.5) else b.constant(np.array(b.integer(1, 4)))
    op_type = b.choice(("Add", "Sub", "Mul", "Div", "Max", "Min", "Mod"))
    b.emit(op_type, x, b.constant(np.array(b.integer(1, 4))) if op_type in ("Div", "Mod") else y)


def reshape_computed(b: Builder) -> None:
    """Reshape to dims of x, some merged or inferred, as exporters compute it."""
    x = shaped(b)
    parts = [dim(b, x, i) if b.chance(0.7) else b.ints(b.choice((0, x.shape[i]))) for i in range(x.rank)]
    inferred = b.chance(0.5)
    if inferred:
        parts[b.integer(0, len(parts) - 1)] = b.ints(-1)
    elif len(parts) > 1 and b.chance(0.4):
        at = b.integer(0, len(parts) - 2)
        parts[at : at + 2] = [b.emit("Mul", *parts[at : at + 2])]
    elif b.chance(0.3):
        parts.insert(b.integer(0, len(parts)), b.ints(1))
    b.emit("Reshape", x, b.emit("Concat", *parts, axis=0), **allow_zero(b, inferred))


def allow_zero(b: Builder, inferred: bool) -> dict[str, int]:
    """Since opset 14 at times allowzero, which goes with no -1 beside a 0."""
    return {"allowzero": 1} if b.opset >= 14 and not inferred and b.chance(0.2) else {}


def reshape(b: Builder) -> None:
    """Reshape to a constant, perhaps merging and splitting axes."""
    x = b.pick()
    target = [0 if b.chance(0.3) or not s else n for n, s in zip(x.shape, x.static, strict=True)]
    if len(target) > 1 and b.chance(0.5):
        at = b.integer(0, len(target) - 2)
        target[at : at + 2] = [-1]
    elif b.chance(0.5):
        target.insert(b.integer(0, len(target)), b.choice((1, -1)))
    target = target if b.chance(0.8) else [-1]
    b.emit("Reshape", x, b.ints(*target), **allow_zero(b, -1 in target))


def reshape_like(b: Builder) -> None:
    """Reshape to the shape of another value of as many elements."""
    x = b.pick()
    y = b.pick(where=lambda v: v.array.size == x.array.size)
    b.emit(b.choice(("Reshape", "Expand")), x, b.emit("Shape", y))


def swap(b: Builder) -> None:
    """Reshape, Transpose, Reshape, as attention splits heads."""
    x = b.pick(where=lambda v: v.rank >= 2 and v.static[-1] and v.shape[-1] % 2 == 0)
    split = b.emit("Reshape", x, b.ints(*[0] * (x.rank - 1), 2, x.shape[-1] // 2))
    order = b.rng.permutation(split.rank).tolist()
    moved = b.emit("Transpose", split, perm=order)
    if b.chance(0.7):
        b.emit("Reshape", moved, b.ints(*[0] * (split.rank - 2), -1))


def transpose(b: Builder) -> None:
    """Transpose, with and without perm."""
    x = shaped(b)
    b.emit("Transpose", x, **({"perm": b.rng.permutation(x.rank).tolist()} if b.chance(0.8) else {}))


def unsqueeze(b: Builder) -> None:
    """Unsqueeze, or Squeeze of axes that are 1."""
    x = b.pick(where=lambda v: v.rank < 5)
    ones = [i for i, (n, s) in enumerate(zip(x.shape, x.static, strict=True)) if s and n == 1]
    if ones and b.chance(0.6):
        axes_given(b, "Squeeze", x, [b.choice(ones)], since=13)
    else:
        count = b.integer(1, 2)
        axes = b.rng.choice(x.rank + count, count, replace=False).tolist()
        axes_given(b, "Unsqueeze", x, [a - x.rank - count if b.chance(0.2) else a for a in axes], since=13)


def slice_(b: Builder) -> None:
    """Slice of some axes, with steps and bounds from either end or far outside."""
    x = shaped(b)
    axes = b.rng.choice(x.rank, b.integer(1, x.rank), replace=False).tolist()
    steps = [b.choice((1, 1, 1, 2, -1)) for _ in axes]
    starts = [b.choice((0, 0, 1, -1, -2)) if step > 0 else b.choice((-1, FAR)) for step in steps]
    ends = [b.choice((FAR, FAR, 1, 2, -1)) if step > 0 else b.choice((-FAR, 0)) for step in steps]
    given = [b.ints(*starts), b.ints(*ends), b.ints(*axes)]
    b.emit("Slice", x, *given, *([b.ints(*steps)] if set(steps) != {1} or b.chance(0.3) else []))


def slices_to_depth(b: Builder) -> None:
    """Focus: every second row and column, stacked; of a single row the standard has no patches to stack."""
    x = b.pick(where=lambda v: v.rank == 4 and all(v.static[2:]) and min(v.shape[2:]) > 1)
    order = [(0, 0), (1, 0), (0, 1), (1, 1)]
    order = order if b.chance(0.7) else b.rng.permutation(order).tolist()
    step = b.ints(2, 2)
    parts = [b.emit("Slice", x, b.ints(*at), b.ints(FAR, FAR), b.ints(2, 3), step) for at in order]
    b.emit("Concat", *parts, axis=1)


def gather(b: Builder) -> None:
    """Gather of one, some or computed positions."""
    x = shaped(b)
    index = b.choice((np.array(0), np.array([-1]), np.array([0, 0]), np.array([[0]]), np.array([], np.int64)))
    b.emit("Gather", x, b.constant(index.astype(np.int64)), axis=some_axis(b, x))


def concat(b: Builder) -> None:
    """Concat of one to three values; beside empty ones ONNX Runtime returns uninitialized memory."""
    x = b.pick(where=lambda v: v.rank > 0 and v.array.size > 0)
    alike = [v for v in b.scope.values if v.kind == x.kind and v.rank == x.rank and v.array.size]
    b.emit("Concat", x, *(b.choice(alike) for _ in range(b.integer(0, 2))), axis=some_axis(b, x))


def split(b: Builder) -> None:
    """Split into two, equal or not, by attribute or input."""
    x = shaped(b)
    axis = b.choice([i for i in range(x.rank) if x.static[i] and x.shape[i] > 1])
    first = b.integer(1, x.shape[axis] - 1)
    sizes = [first, x.shape[axis] - first]
    if b.opset < 13:
        b.emit("Split", x, outputs=2, axis=axis, split=sizes)
    elif b.opset >= 18 and b.chance(0.3):
        b.emit("Split", x, outputs=2, axis=axis, num_outputs=2)
    else:
        b.emit("Split", x, b.ints(*sizes), outputs=2, axis=axis)


def expand(b: Builder) -> None:
    """Expand to more, or to what it is."""
    x = b.pick()
    target = [b.integer(1, 2) if n == 1 else b.choice((1, n)) for n in x.shape]
    b.emit("Expand", x, b.ints(*([2] if b.chance(0.2) else []), *target))


def tile(b: Builder) -> None:
    """Tile, often by 1."""
    x = shaped(b)
    b.emit("Tile", x, b.ints(*(b.choice((1, 1, 2)) for _ in range(x.rank))))


def pad(b: Builder) -> None:
    """Pad of any type, negative at times."""
    x = shaped(b)
    b.emit("Pad", x, b.ints(*(b.choice((0, 0, 0, 1, -1)) for _ in range(2 * x.rank))))


def reduce(b: Builder) -> None:
    """A reduction over some axes or all."""
    x = b.pick("float32 int64 int32", lambda v: v.rank > 0)
    op_type = b.choice(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceProd"))
    since = 13 if op_type == "ReduceSum" else 18
    if b.chance(0.2):
        b.emit(op_type, x, keepdims=b.integer(0, 1))
    else:
        axes_given(b, op_type, x, [some_axis(b, x)], since, keepdims=b.integer(0, 1))


def filled(b: Builder) -> None:
    """A tensor of computed shape: ConstantOfShape, or Range."""
    if b.chance(0.5):
        b.emit("ConstantOfShape", b.pick("int64", lambda v: v.rank == 1 and v.array.size < 5))
    else:
        limit = b.pick("int64", lambda v: v.rank == 0 or v.array.size == 1)
        limit = b.emit("Reshape", limit, b.constant(np.array([], np.int64)))
        b.emit("Range", b.constant(np.array(b.integer(0, 1))), limit, b.constant(np.array(b.integer(1, 2))))


def flatten(b: Builder) -> None:
    """Flatten at some axis."""
    x = b.pick()
    b.emit("Flatten", x, axis=b.integer(0, x.rank))


def size(b: Builder) -> None:
    """Size, NonZero or ArgMax of exact numbers."""
    x = b.pick("int64 int32 bool", lambda v: v.rank > 0)
    op_type = b.choice(("Size", "NonZero", "ArgMax"))
    b.emit(op_type, x, **({"axis": some_axis(b, x)} if op_type == "ArgMax" else {}))


def pair(b: Builder) -> None:
    """Two movements in a row."""
    draw = b.choice((transpose, unsqueeze, slice_, reshape, flatten))
    draw(b)
    draw(b)


def resize(b: Builder) -> None:
    """Resize by 1 or 2, to the nearest pixel or linear."""
    x = b.pick("float32", lambda v: v.rank == 4)
    scales = b.constant(np.array([1, 1, b.integer(1, 2), b.integer(1, 2)], np.float32))
    mode = b.choice(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"))
    b.emit(
        "Resize", x, None, scales, mode=b.choice(("nearest", "linear")), coordinate_transformation_mode=mode
    )


def depth_to_space(b: Builder) -> None:
    """DepthToSpace or its inverse."""
    b.emit(b.choice(("DepthToSpace", "SpaceToDepth")), b.pick(where=lambda v: v.rank == 4), blocksize=2)


def split_in_one(b: Builder) -> None:
    """Split into one part."""
    b.emit("Split", shaped(b), axis=0, **({"num_outputs": 1} if b.opset >= 18 else {}))


DRAWS = {
    pair: 4,
    resize: 1,
    depth_to_space: 1,
    split_in_one: 0.5,
    shape: 3,
    arithmetic: 3,
    reshape_computed: 4,
    reshape: 4,
    reshape_like: 1,
    swap: 2,
    transpose: 3,
    unsqueeze: 3,
    slice_: 4,
    slices_to_depth: 1,
    gather: 3,
    concat: 3,
    split: 1,
    expand: 2,
    tile: 1,
    pad: 2,
    reduce: 2,
    filled: 2,
    flatten: 1,
    size: 1,
}
