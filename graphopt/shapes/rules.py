"""How frequent operators carry dims from inputs to outputs, with symbols kept where equality is provable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx_ir as ir

from graphopt import graph as g
from graphopt.shapes.contents import elementwise, joined, select
from graphopt.shapes.symbols import Dim, Symbols

if TYPE_CHECKING:
    from graphopt.shapes.inference import Shapes

Dims = tuple[Dim, ...]
DataType = ir.DataType


class Fact(NamedTuple):
    """What is known of a value: element type, dims, and the elements of a small integer tensor."""

    dtype: ir.DataType | None = None
    dims: Dims | None = None
    vector: Dims | None = None


UNKNOWN = Fact()


@dataclass(frozen=True)
class At:
    """A node with what is known of its inputs."""

    node: ir.Node
    inputs: Sequence[Fact]
    shapes: Shapes
    opset: int

    @property
    def symbols(self) -> Symbols:
        """The algebra that dims are computed in."""
        return self.shapes.symbols

    def get(self, index: int) -> Fact:
        """What is known of an input; nothing for an omitted one."""
        return self.inputs[index] if index < len(self.inputs) else UNKNOWN

    def has(self, index: int) -> bool:
        """Whether an input is present."""
        return index < len(self.inputs) and self.node.inputs[index] is not None

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of an attribute; raises ``KeyError`` for a parameter of a function."""
        return g.attribute(self.node, name, default)

    def rank(self, index: int = 0) -> int:
        """The rank of an input; raises ``KeyError`` when it is unknown."""
        return len(self.dims(index))

    def dims(self, index: int = 0) -> Dims:
        """The dims of an input; raises ``KeyError`` when the rank is unknown."""
        dims = self.get(index).dims
        if dims is None:
            raise KeyError("rank")
        return dims

    def ints(self, index: int, name: str) -> list[int] | None:
        """Integers that are an attribute in old opsets and an input in new ones; ``None`` when not given.

        Raises:
            KeyError: when they are given but unknown.
        """
        if name in self.node.attributes:
            value = self.attr(name)
            return [value] if isinstance(value, int) else list(value)
        if not self.has(index):
            return None
        vector = self.get(index).vector
        if vector is None or any(isinstance(v, str) for v in vector):
            raise KeyError(name)
        return [int(v) for v in vector]

    def axis(self, default: int, rank: int) -> int:
        """The attribute ``axis``, counted from the front; ONNX Runtime lets a scalar have one."""
        return int(self.attr("axis", default)) % max(rank, 1)

    def axes(self, index: int, rank: int) -> list[int] | None:
        """The input or attribute ``axes``, counted from the front."""
        found = self.ints(index, "axes")
        return None if found is None else [axis % max(rank, 1) for axis in found]


Rule = Callable[[At], Sequence[Fact]]


def register(table: dict[str, Rule], *op_types: str) -> Callable[[Rule], Rule]:
    """Enter the rule of some operators of the default domain in a table."""

    def enter(function: Rule) -> Rule:
        table.update(dict.fromkeys(op_types, function))
        return function

    return enter


RULES: dict[str, Rule] = {}
rule = partial(register, RULES)


def broadcast(symbols: Symbols, a: Dims | None, b: Dims | None) -> Dims | None:
    """NumPy broadcasting of dims that may be 1 at run time."""
    if a is None or b is None:
        return None
    rank = max(len(a), len(b))
    left, right = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    return tuple(symbols.broadcast(x, y) for x, y in zip(left, right, strict=True))


SAME = """Relu Sigmoid Tanh Erf Sqrt Exp Log Neg Abs Floor Ceil Round Sign Reciprocal LeakyRelu Elu Selu Celu
Softplus Softsign HardSigmoid HardSwish Mish Gelu Swish Identity Clip Softmax LogSoftmax Hardmax LRN
InstanceNormalization GroupNormalization LpNormalization MeanVarianceNormalization RMSNormalization Trilu
CumSum Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh ThresholdedRelu Shrink PRelu BitwiseNot
ReverseSequence ScatterND ScatterElements Scatter LayerNormalization"""


@rule(*SAME.split())
def _same(at: At) -> Sequence[Fact]:
    first = at.get(0)
    vector = first.vector if at.node.op_type == "Identity" else None
    return [Fact(first.dtype, first.dims, vector)]


@rule("Not")
def _not(at: At) -> Sequence[Fact]:
    first = at.get(0)
    opposite = None if first.vector is None else tuple(at.symbols.subtract(1, v) for v in first.vector)
    return [Fact(first.dtype, first.dims, opposite)]


@rule("IsNaN", "IsInf")
def _predicate(at: At) -> Sequence[Fact]:
    return [Fact(DataType.BOOL, at.get(0).dims)]


@rule("Dropout")
def _dropout(at: At) -> Sequence[Fact]:
    first = at.get(0)
    mask = DataType.BOOL if at.opset >= 10 else first.dtype
    return [Fact(first.dtype, first.dims), Fact(mask, first.dims)]


@rule("BatchNormalization")
def _batch_norm(at: At) -> Sequence[Fact]:
    first, channels = at.get(0), at.get(1).dims
    return [Fact(first.dtype, first.dims), *[Fact(at.get(3).dtype, channels)] * (len(at.node.outputs) - 1)]


@rule("Cast")
def _cast(at: At) -> Sequence[Fact]:
    first, to = at.get(0), DataType(at.attr("to"))
    integer = (DataType.INT64, DataType.INT32)
    vector = first.vector if to in integer and first.dtype in (*integer, DataType.BOOL) else None
    if vector is not None and to is DataType.INT32 and first.dtype is DataType.INT64:  # only dims fit
        vector = tuple(e if at.symbols.is_dim(e) else at.symbols.fresh(signed=True) for e in vector)
    return [Fact(to, first.dims, vector)]


@rule("CastLike")
def _cast_like(at: At) -> Sequence[Fact]:
    first, to = at.get(0), at.get(1).dtype
    return [Fact(to, first.dims, first.vector if to == first.dtype else None)]


@rule("QuantizeLinear")
def _quantize(at: At) -> Sequence[Fact]:
    stated = at.attr("output_dtype", 0)
    given = at.get(2).dtype if at.has(2) else DataType.UINT8
    return [Fact(DataType(stated) if stated else given, at.get(0).dims)]


@rule("DequantizeLinear")
def _dequantize(at: At) -> Sequence[Fact]:
    stated = at.attr("output_dtype", 0)
    return [Fact(DataType(stated) if stated else at.get(1).dtype, at.get(0).dims)]


COMPARE = ("And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")


@rule("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", *COMPARE)
@rule("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
def _elementwise(at: At) -> Sequence[Fact]:
    dims = at.get(0).dims
    if at.opset >= 7:  # until then the second operand had to fit into the first
        for other in at.inputs[1:]:
            dims = broadcast(at.symbols, dims, other.dims)
    dtype = DataType.BOOL if at.node.op_type in COMPARE else at.get(0).dtype
    vectors = [fact.vector for fact in at.inputs]
    small = dims is not None and len(dims) <= 1
    return [Fact(dtype, dims, elementwise(at.symbols, at.node.op_type, vectors) if small else None)]


@rule("Where")
def _where(at: At) -> Sequence[Fact]:
    condition, x, y = (at.get(i) for i in range(3))
    dims = broadcast(at.symbols, broadcast(at.symbols, condition.dims, x.dims), y.dims)
    small = dims is not None and len(dims) <= 1
    vector = select(condition.vector, x.vector, y.vector) if small else None
    return [Fact(x.dtype or y.dtype, dims, vector)]


@rule("MatMul", "MatMulInteger")
def _matmul(at: At) -> Sequence[Fact]:
    dtype = DataType.INT32 if at.node.op_type == "MatMulInteger" else at.get(0).dtype
    a, b = at.get(0).dims, at.get(1).dims
    if not a or not b:
        return [Fact(dtype)]
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    batch = broadcast(at.symbols, a[:-2], b[:-2]) or ()
    return [Fact(dtype, batch + rows + columns)]


@rule("Gemm")
def _gemm(at: At) -> Sequence[Fact]:
    dtype, a, b = at.get(0).dtype, at.get(0).dims, at.get(1).dims
    if a is None or b is None:
        return [Fact(dtype, (at.symbols.fresh(), at.symbols.fresh()))]
    rows, columns = a[1 if at.attr("transA", 0) else 0], b[0 if at.attr("transB", 0) else 1]
    return [Fact(dtype, (rows, columns))]


@rule("Transpose")
def _transpose(at: At) -> Sequence[Fact]:
    if at.get(0).dims is None:
        return [Fact(at.get(0).dtype)]
    dims = at.dims()
    order = at.attr("perm") or range(len(dims))[::-1]
    return [Fact(at.get(0).dtype, tuple(dims[i] for i in order))]


@rule("Concat")
def _concat(at: At) -> Sequence[Fact]:
    dtype = next((fact.dtype for fact in at.inputs if fact.dtype is not None), None)
    known = [fact.dims for fact in at.inputs if fact.dims is not None]
    if not known:
        return [Fact(dtype)]
    axis = at.axis(1, len(known[0]))
    complete = len(known) == len(at.inputs)
    dims = [_agreed(at.symbols, known, i, complete) for i in range(len(known[0]))]
    dims[axis] = at.symbols.fresh()
    if complete:
        dims[axis] = 0
        for given in known:
            dims[axis] = at.symbols.add(dims[axis], given[axis])
    return [Fact(dtype, tuple(dims), joined([fact.vector for fact in at.inputs]))]


def _agreed(symbols: Symbols, known: Sequence[Dims], axis: int, complete: bool) -> Dim:
    """A dim of concatenated tensors beside the axis; ONNX Runtime lets empty ones differ from the others."""
    dims = {given[axis] for given in known}
    if len(dims) > 1 or not complete:
        dims = {given[axis] for given in known if all(map(symbols.is_nonzero, given))}
    return min(dims, key=str) if dims else symbols.fresh()


@rule("Split")
def _split(at: At) -> Sequence[Fact]:
    first, count = at.get(0), len(at.node.outputs)
    if first.dims is None:
        return [Fact(first.dtype)] * count
    axis = at.axis(0, len(first.dims))
    sizes: Sequence[Dim] = [at.symbols.fresh() for _ in range(count)]
    try:
        sizes = at.ints(1, "split") or _even_parts(at, first.dims[axis], count)
    except KeyError:
        sizes = at.get(1).vector or sizes
    return [Fact(first.dtype, (*first.dims[:axis], size, *first.dims[axis + 1 :])) for size in sizes]


def _even_parts(at: At, whole: Dim, count: int) -> list[Dim]:
    part = at.symbols.quotient(whole, count)
    if part is not None:
        return [part] * count
    if isinstance(whole, str):
        return [at.symbols.fresh() for _ in range(count)]
    chunk = -(-whole // count)
    return [*[chunk] * (count - 1), whole - chunk * (count - 1)]


@rule("Squeeze")
def _squeeze(at: At) -> Sequence[Fact]:
    first = at.get(0)
    if first.dims is None:
        return [Fact(first.dtype)]
    axes = at.axes(1, len(first.dims))
    if not axes:
        if any(isinstance(dim, str) for dim in first.dims):
            return [Fact(first.dtype)]
        axes = [i for i, dim in enumerate(first.dims) if dim == 1]
    dims = tuple(dim for i, dim in enumerate(first.dims) if i not in axes)
    return [Fact(first.dtype, dims, first.vector)]


@rule("Unsqueeze")
def _unsqueeze(at: At) -> Sequence[Fact]:
    first, count = at.get(0), at.ints(1, "axes") or []
    if first.dims is None:
        return [Fact(first.dtype)]
    rank = len(first.dims) + len(count)
    axes, rest = {axis % rank for axis in count}, iter(first.dims)
    dims = tuple(1 if i in axes else next(rest) for i in range(rank))
    return [Fact(first.dtype, dims, first.vector if rank <= 1 else None)]


@rule("Flatten")
def _flatten(at: At) -> Sequence[Fact]:
    first = at.get(0)
    if first.dims is None:
        return [Fact(first.dtype, (at.symbols.fresh(), at.symbols.fresh()))]
    axis, rank = at.attr("axis", 1), len(first.dims)
    axis = axis if axis >= 0 else axis + rank
    product = at.symbols.product
    return [Fact(first.dtype, (product(first.dims[:axis]), product(first.dims[axis:])))]


@rule("Expand")
def _expand(at: At) -> Sequence[Fact]:
    first, target = at.get(0), at.get(1).vector
    dims = broadcast(at.symbols, first.dims, target)
    return [Fact(first.dtype, dims, first.vector if dims == first.dims else None)]


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(at: At) -> Sequence[Fact]:
    first = at.get(0)
    dims = None if first.dims is None else first.dims[:2] + (1,) * (len(first.dims) - 2)
    return [Fact(first.dtype, dims)]


@rule("ConstantOfShape")
def _constant_of_shape(at: At) -> Sequence[Fact]:
    tensor = at.attr("value")
    dtype = DataType.FLOAT if tensor is None else tensor.dtype
    dims = at.get(0).vector
    content = None
    if tensor is not None and dtype is DataType.INT64 and dims is not None and len(dims) <= 1:
        size = at.symbols.product(dims)
        small = isinstance(size, int) and 0 <= size <= 128
        content = (int(tensor.numpy().reshape(-1)[0]),) * size if small and isinstance(size, int) else None
    if dims is None:
        length = at.get(0).dims
        count = length[0] if length else None
        dims = tuple(at.symbols.fresh() for _ in range(count)) if isinstance(count, int) else None
    return [Fact(dtype, dims, content)]


@rule("Shape")
def _shape(at: At) -> Sequence[Fact]:
    dims = at.get(0).dims
    if dims is None:
        return [Fact(DataType.INT64, (at.symbols.fresh(),))]
    part = dims[at.attr("start", 0) : at.attr("end", None)]
    return [Fact(DataType.INT64, (len(part),), part)]


@rule("Size")
def _size(at: At) -> Sequence[Fact]:
    dims = at.get(0).dims
    vector = None if dims is None else (at.symbols.product(dims),)
    return [Fact(DataType.INT64, (), vector)]
