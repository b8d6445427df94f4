"""Dims and contents through operators that move, select or reduce elements, slide windows, run subgraphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import onnx_ir as ir

from graphopt.shapes.contents import Vector
from graphopt.shapes.rules import At, DataType, Dims, Fact, Rule, register
from graphopt.shapes.symbols import Dim, Symbols

FAR = 2**31 - 1
VIEWS: dict[str, Rule] = {}
rule = partial(register, VIEWS)


@rule("Reshape")
def _reshape(at: At) -> Sequence[Fact]:
    first = at.get(0)
    target = _bounds(at, 1, "shape")
    if target is None:
        length = at.get(1).dims
        count = length[0] if length else None
        unknown = tuple(at.symbols.fresh() for _ in range(count)) if isinstance(count, int) else None
        return [Fact(first.dtype, unknown)]
    zero_is_zero = bool(at.attr("allowzero", 0))
    dims = reshaped(at.symbols, first.dims, target, zero_is_zero=zero_is_zero)
    if not zero_is_zero:
        at.shapes.observe(at.node, _proved_nonzero(at.symbols, first.dims, target, dims))
    return [Fact(first.dtype, dims, first.vector if len(dims) <= 1 else None)]


def _proved_nonzero(symbols: Symbols, dims: Dims | None, target: Vector, result: Dims) -> Iterator[Dim]:
    """What is not 0 in a run that passes this Reshape, as ONNX Runtime checks it.

    Nothing beside a -1 may be 0, and an element that is 0 must copy a dim that exists.
    """
    if -1 in target:
        yield from (dim for dim, element in zip(result, target, strict=True) if element != -1)
    if dims is not None:
        yield from target[len(dims) :]


def reshaped(symbols: Symbols, dims: Dims | None, target: Vector, *, zero_is_zero: bool) -> Dims:
    """The dims that Reshape makes of ``dims``; a symbolic target element may be 0 or -1 at run time."""
    done = [_target_dim(symbols, dims, target, i, zero_is_zero) for i in range(len(target))]
    if target.count(-1) == 1 and dims is not None:
        others = tuple(dim for dim in done if dim is not None)
        if len(others) == len(target) - 1:
            done[target.index(-1)] = symbols.divide(symbols.product(dims), symbols.product(others))
    return tuple(symbols.fresh() if dim is None else dim for dim in done)


def _target_dim(
    symbols: Symbols, dims: Dims | None, target: Vector, i: int, zero_is_zero: bool
) -> Dim | None:
    element = target[i]
    if element == -1 or not symbols.is_dim(element):
        return None
    if zero_is_zero or symbols.is_nonzero(element):
        return element
    if element == 0:
        return dims[i] if dims is not None and i < len(dims) else None
    # If the element is 0 at run time it copies dims[i]: they must vanish together to be the same dim.
    if dims is None:
        return None
    if i >= len(dims) or symbols.vanishes_with(dims[i], element):
        return element
    others = target[:i] + target[i + 1 :]
    only = all(isinstance(other, int) and other > 0 for other in others)
    return element if only and symbols.vanishes_with(symbols.product(dims), element) else None


@rule("Slice")
def _slice(at: At) -> Sequence[Fact]:
    first = at.get(0)
    if first.dims is None:
        return [Fact(first.dtype)]
    starts, ends = _bounds(at, 1, "starts"), _bounds(at, 2, "ends")
    axes = at.axes(3, len(first.dims))
    if axes is None:
        axes = list(range(len(starts or ends or first.dims)))
    steps = at.ints(4, "steps") or [1] * len(axes)
    dims = list(first.dims)
    for i, axis in enumerate(axes):
        start, end = (starts[i] if starts else None), (ends[i] if ends else None)
        dims[axis] = sliced(at.symbols, first.dims[axis], start, end, steps[i])
    return [Fact(first.dtype, tuple(dims), _part(first.vector, starts, ends, steps))]


def _bounds(at: At, index: int, name: str) -> Vector | None:
    return tuple(at.attr(name)) if name in at.node.attributes else at.get(index).vector


def _part(
    vector: Vector | None, starts: Vector | None, ends: Vector | None, steps: Sequence[int]
) -> Vector | None:
    if vector is None or not starts or not ends or len(starts) != 1:
        return None
    part = _exact(len(vector), starts[0], ends[0], steps[0])
    return None if part is None else vector[part]


def _exact(dim: Dim, start: Dim, end: Dim, step: int) -> slice | None:
    """The slice as Python clamps it; ONNX clamps a start before the first element otherwise."""
    if isinstance(dim, str) or isinstance(start, str) or isinstance(end, str) or step == 0:
        return None
    return None if step < 0 and start < -dim else slice(start, end, step)


def sliced(symbols: Symbols, dim: Dim, start: Dim | None, end: Dim | None, step: int) -> Dim:
    """How many elements of ``dim`` a slice takes."""
    if start is None or end is None:
        return symbols.fresh()
    part = _exact(dim, start, end, step)
    if part is not None and isinstance(dim, int):
        return len(range(dim)[part])
    if start == 0 and step == 1 and symbols.is_dim(end):
        return symbols.minimum(dim, end)
    first, last = _position(symbols, dim, start), _position(symbols, dim, end)
    if step == 1 and first is not None and last is not None:
        count = symbols.subtract(last, first)
        if symbols.is_dim(count):
            return count
    return symbols.function("slice", dim, start, end, step, signed=False)


def _position(symbols: Symbols, dim: Dim, bound: Dim) -> Dim | None:
    """Where a bound falls in 0 … dim after ONNX clamps it, if that is provable."""
    if isinstance(bound, int) and bound >= FAR:
        return dim
    if bound == 0:
        return 0
    forward = symbols.is_dim(bound)
    if not forward and not symbols.at_least(-1, bound):
        return None
    at = bound if forward else symbols.add(dim, bound)
    if symbols.at_least(at, dim):
        return dim
    return at if symbols.is_dim(at) and symbols.at_least(dim, at) else None


@rule("Gather")
def _gather(at: At) -> Sequence[Fact]:
    data, indices = at.get(0), at.get(1)
    if data.dims is None or indices.dims is None:
        return [Fact(data.dtype)]
    axis = at.axis(0, len(data.dims))
    dims = data.dims[:axis] + indices.dims + data.dims[axis + 1 :]
    vector = None
    if data.vector is not None and indices.vector is not None and len(indices.dims) <= 1:
        known = [i for i in indices.vector if isinstance(i, int)]
        if len(known) == len(indices.vector):
            vector = tuple(data.vector[i] for i in known)
    return [Fact(data.dtype, dims, vector)]


@rule("GatherElements")
def _gather_elements(at: At) -> Sequence[Fact]:
    return [Fact(at.get(0).dtype, at.get(1).dims)]


@rule("Tile")
def _tile(at: At) -> Sequence[Fact]:
    first, repeats = at.get(0), at.get(1).vector
    if first.dims is None or repeats is None or len(repeats) != len(first.dims):
        return [Fact(first.dtype, _all_fresh(at, first.dims))]
    pairs = zip(first.dims, repeats, strict=True)
    return [Fact(first.dtype, tuple(at.symbols.multiply(dim, n) for dim, n in pairs))]


def _all_fresh(at: At, dims: Dims | None) -> Dims | None:
    return None if dims is None else tuple(at.symbols.fresh() for _ in dims)


@rule("Range")
def _range(at: At) -> Sequence[Fact]:
    bounds = [at.get(i).vector for i in range(3)]
    if None in bounds:
        return [Fact(at.get(0).dtype, (at.symbols.fresh(),))]
    start, limit, delta = (bound[0] for bound in bounds if bound)
    if start == 0 and delta == 1 and at.symbols.is_dim(limit):
        return [Fact(at.get(0).dtype, (limit,))]
    if isinstance(start, int) and isinstance(limit, int) and isinstance(delta, int) and delta:
        values = range(start, limit, delta)
        return [Fact(at.get(0).dtype, (len(values),), tuple(values) if len(values) <= 128 else None)]
    return [Fact(at.get(0).dtype, (at.symbols.function("range", start, limit, delta, signed=False),))]


@rule("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")
@rule("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
def _reduce(at: At) -> Sequence[Fact]:
    first, keep = at.get(0), bool(at.attr("keepdims", 1))
    if first.dims is None:
        return [Fact(first.dtype)]
    rank = len(first.dims)
    axes = at.axes(1, rank)
    if not axes:
        axes = [] if at.attr("noop_with_empty_axes", 0) else list(range(rank))
    whole = axes == list(range(rank)) and first.vector
    vector = _reduced(at, first.vector) if whole and first.vector else None
    return [Fact(first.dtype, _without(first.dims, axes, keep), vector)]


def _reduced(at: At, vector: Vector) -> Vector | None:
    if at.node.op_type == "ReduceProd":
        return (at.symbols.product(vector),)
    if at.node.op_type == "ReduceSum":
        total: Dim = 0
        for dim in vector:
            total = at.symbols.add(total, dim)
        return (total,)
    return None


def _without(dims: Dims, axes: Sequence[int], keep: bool) -> Dims:
    if keep:
        return tuple(1 if i in axes else dim for i, dim in enumerate(dims))
    return tuple(dim for i, dim in enumerate(dims) if i not in axes)


@rule("ArgMax", "ArgMin")
def _arg(at: At) -> Sequence[Fact]:
    dims = at.get(0).dims
    if dims is None:
        return [Fact(DataType.INT64)]
    return [Fact(DataType.INT64, _without(dims, [at.axis(0, len(dims))], bool(at.attr("keepdims", 1))))]


@rule("NonZero")
def _non_zero(at: At) -> Sequence[Fact]:
    dims = at.get(0).dims
    return [Fact(DataType.INT64, (at.symbols.fresh() if dims is None else len(dims), at.symbols.fresh()))]


@rule("Pad")
def _pad(at: At) -> Sequence[Fact]:
    first = at.get(0)
    if first.dims is None:
        return [Fact(first.dtype)]
    rank = len(first.dims)
    pads: Sequence[Dim] | None = at.attr("pads") if "pads" in at.node.attributes else at.get(1).vector
    axes = at.axes(3, rank) or range(rank)
    if pads is None:
        return [
            Fact(first.dtype, tuple(at.symbols.fresh() if i in axes else d for i, d in enumerate(first.dims)))
        ]
    dims = list(first.dims)
    for i, axis in enumerate(axes):
        both = at.symbols.add(pads[i], pads[i + len(axes)])
        dims[axis] = at.symbols.add(dims[axis], both)
    return [Fact(first.dtype, tuple(dims))]


@rule("Conv", "ConvInteger", "MaxPool", "AveragePool", "LpPool")
def _window(at: At) -> Sequence[Fact]:
    first, weight, op_type = at.get(0), at.get(1).dims, at.node.op_type
    dtype = DataType.INT32 if op_type == "ConvInteger" else first.dtype
    convolves = op_type.startswith("Conv")
    if first.dims is None or (convolves and weight is None and "kernel_shape" not in at.node.attributes):
        return [Fact(dtype)]
    kernel: Sequence[Dim] = at.attr("kernel_shape") or (weight or ())[2:]
    channels = weight[0] if convolves and weight else (at.symbols.fresh() if convolves else first.dims[1])
    spatial = [_slid(at, first.dims[i + 2], k, i, len(kernel)) for i, k in enumerate(kernel)]
    dims = (first.dims[0], channels, *spatial)
    return [Fact(dtype, dims), Fact(DataType.INT64, dims)][: len(at.node.outputs)]


def _slid(at: At, dim: Dim, kernel: Dim, i: int, count: int) -> Dim:
    """How many windows fit along one axis."""
    symbols = at.symbols
    stride, dilation = ((at.attr(name) or [1] * count)[i] for name in ("strides", "dilations"))
    auto = at.attr("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        return dim if stride == 1 else _rounded(symbols, dim, stride, up=True)
    pads = [0] * 2 * count if auto == "VALID" else at.attr("pads") or [0] * 2 * count
    reach = symbols.add(symbols.multiply(symbols.subtract(kernel, 1), dilation), 1)
    free = symbols.subtract(symbols.add(dim, pads[i] + pads[i + count]), reach)
    if stride == 1:
        return symbols.add(free, 1)
    ceil = bool(at.attr("ceil_mode", 0))
    if ceil and not (isinstance(free, int) and free % stride == 0):
        return symbols.fresh()  # the last window may start in the padding, where versions of ONNX disagree
    return symbols.add(_rounded(symbols, free, stride, up=False), 1)


def _rounded(symbols: Symbols, dim: Dim, stride: int, *, up: bool) -> Dim:
    if isinstance(dim, int):
        return -(-dim // stride) if up else dim // stride
    exact = symbols.quotient(dim, stride)
    return symbols.function("ceil" if up else "floor", dim, stride) if exact is None else exact


@rule("If")
def _if(at: At) -> Sequence[Fact]:
    branches = [at.attr("else_branch"), at.attr("then_branch")]
    if at.get(0).vector in ((0,), (1,)):
        branches = [branches[at.get(0).vector == (1,)]] * 2
    for branch in branches:
        at.shapes.visit(branch)
    pairs = zip(*(branch.outputs for branch in branches), strict=True)
    return [_either(at, at.shapes.fact(a), at.shapes.fact(b)) for a, b in pairs]


def _either(at: At, a: Fact, b: Fact) -> Fact:
    """What holds whichever of two values it is."""
    dtype = a.dtype if a.dtype == b.dtype else None
    if a.dims is None or b.dims is None or len(a.dims) != len(b.dims):
        return Fact(dtype)
    fresh = at.symbols.fresh
    dims = tuple(x if x == y else fresh() for x, y in zip(a.dims, b.dims, strict=True))
    return Fact(dtype, dims, a.vector if a.vector == b.vector else None)


@rule("Loop")
def _loop(at: At) -> Sequence[Fact]:
    body: ir.Graph = at.attr("body")
    at.shapes.visit(body)
    count = len(at.node.inputs) - 2
    results = [at.shapes.fact(value) for value in body.outputs[1:]]
    return [Fact(fact.dtype) if i < count else _stacked(at, fact) for i, fact in enumerate(results)]


@rule("Scan")
def _scan(at: At) -> Sequence[Fact]:
    body: ir.Graph = at.attr("body")
    at.shapes.visit(body)
    count = len(at.node.inputs) - int(at.attr("num_scan_inputs"))
    results = [at.shapes.fact(value) for value in body.outputs]
    return [Fact(fact.dtype) if i < count else _stacked(at, fact) for i, fact in enumerate(results)]


def _stacked(at: At, fact: Fact) -> Fact:
    """A scan output: symbols of one iteration mean nothing outside."""
    if fact.dims is None:
        return Fact(fact.dtype)
    fresh = at.symbols.fresh
    inner = tuple(dim if isinstance(dim, int) else fresh() for dim in fact.dims)
    return Fact(fact.dtype, (fresh(), *inner))
