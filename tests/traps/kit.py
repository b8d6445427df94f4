"""How traps are written down: a model, its feeds, and what must hold of every optimized form of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

Array = np.ndarray[Any, Any]
Feeds = dict[str, Any]

SIZES = ((2, 3, 4, 6), (1, 1, 1, 1), (5, 1, 2, 3))
"""What the first, second and third symbol of a model stand for, feed by feed."""
ROUNDING = 1e-5


@dataclass(frozen=True)
class Trap:
    """A small model that an optimizer may get wrong.

    Attributes:
        name: of the function that builds it.
        model: the model.
        feeds: what to run it on.
        rtol: how far floats may be off, relative to the largest; 0 asks for equal bits.
        keeps: how often operators must at least occur afterwards.
        random: outputs differ from run to run, so that only types and shapes are compared.
        lists_constants: an IR 3 model, which may come back as IR 4 without its constants among the inputs.
    """

    name: str
    model: onnx.ModelProto
    feeds: tuple[Feeds, ...]
    rtol: float = 0.0
    keeps: Mapping[str, int] = field(default_factory=dict)
    random: bool = False
    lists_constants: bool = False

    def __str__(self) -> str:
        return self.name


Built = onnx.ModelProto | tuple[onnx.ModelProto, Sequence[Feeds]]
Builder = Callable[[], Built]
_BUILDERS: dict[str, tuple[Builder, dict[str, Any]]] = {}


def trap(**expected: Any) -> Callable[[Builder], Builder]:
    """Register a function that builds a model, or a model and its feeds; the rest are fields of Trap."""

    def register(build: Builder) -> Builder:
        name = f"{build.__module__.rpartition('.')[2]}.{build.__name__}"
        assert name not in _BUILDERS
        _BUILDERS[name] = build, expected
        return build

    return register


def names() -> list[str]:
    """The names of all traps."""
    return list(_BUILDERS)


def make(name: str) -> Trap:
    """Build a trap."""
    build, expected = _BUILDERS[name]
    built = build()
    model, feeds = built if isinstance(built, tuple) else (built, list(drawn(built)))
    return Trap(name, model, tuple(feeds), **expected)


def model(
    text: str,
    *,
    opset: int = 17,
    ir_version: int = 8,
    functions: str = "",
    imports: str = "",
    defaults: Mapping[str, Array] | None = None,
    **weights: Array | TensorProto,
) -> onnx.ModelProto:
    """A model from the text of its graph and functions.

    Args:
        text: of the graph.
        opset: of the default domain.
        ir_version: of the file.
        functions: in the syntax of ONNX, in domain ``local``.
        imports: of further domains.
        defaults: overridable initializers: they are inputs, too.
        weights: initializers.
    """
    domains = [f'"" : {opset}', *(['"local" : 1'] if functions else []), *([imports] if imports else [])]
    proto = parser.parse_model(
        f"<ir_version: {ir_version}, opset_import: [{', '.join(domains)}]> {text}\n{functions}"
    )
    for name, data in {**weights, **(defaults or {})}.items():
        proto.graph.initializer.append(tensor(name, data))
    for name, data in (defaults or {}).items():
        kind = helper.np_dtype_to_tensor_dtype(data.dtype)
        proto.graph.input.append(helper.make_tensor_value_info(name, kind, data.shape))
    onnx.checker.check_model(proto)
    return proto


def tensor(name: str, data: Array | TensorProto) -> TensorProto:
    """A named initializer."""
    proto = TensorProto()
    proto.CopyFrom(data if isinstance(data, TensorProto) else numpy_helper.from_array(np.asarray(data)))
    proto.name = name
    return proto


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Seeded normal numbers."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def ints(*values: int) -> Array:
    """A vector of int64."""
    return np.array(values, np.int64)


def scalar(value: float, dtype: Any = np.float32) -> Array:
    """A tensor of rank 0."""
    return np.array(value, dtype)


def drawn(proto: onnx.ModelProto, special: bool = False) -> Iterator[Feeds]:
    """Seeded feeds for all required inputs, symbolic dims of several sizes.

    Args:
        proto: the model.
        special: put NaN, infinities and a negative zero among floats.
    """
    defaults = {held.name for held in proto.graph.initializer}
    wanted = [value for value in proto.graph.input if value.name not in defaults]
    symbols = dict.fromkeys(d.dim_param for v in wanted for d in v.type.tensor_type.shape.dim if d.dim_param)
    for seed, sizes in enumerate(SIZES if symbols else SIZES[:1]):
        size = dict(zip(symbols, sizes, strict=False))
        rng = np.random.default_rng(seed)
        yield {value.name: _random(value.type.tensor_type, size, rng, special) for value in wanted}


def _random(kind: Any, size: Mapping[str, int], rng: np.random.Generator, special: bool) -> Array:
    dims = [
        dim.dim_value or size[dim.dim_param] if dim.dim_param else dim.dim_value for dim in kind.shape.dim
    ]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if kind.elem_type == TensorProto.STRING:
        return np.array([f"text {i}" for i in range(int(np.prod(dims)))], object).reshape(dims)
    if dtype.kind == "b":
        return np.asarray(rng.random(dims) < 0.5)
    if dtype.kind in "iu":
        return np.asarray(rng.integers(0 if dtype.kind == "u" else -3, 4, dims)).astype(dtype)
    data = np.asarray(rng.normal(size=dims)).astype(dtype)
    if special:
        data.flat[:4] = np.array([np.nan, np.inf, -np.inf, -0.0], dtype)[: data.size]
    return data


def special(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Feeds]]:
    """The model with feeds that hold NaN, infinities and a negative zero."""
    return proto, list(drawn(proto, special=True))


def operators(proto: onnx.ModelProto) -> Counter[str]:
    """How often each operator occurs, subgraphs and functions included."""
    found: Counter[str] = Counter()
    stack = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while stack:
        node = stack.pop()
        found[node.op_type] += 1
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                stack.extend(graph.node)
    return found


def renamed(proto: onnx.ModelProto, new: Mapping[str, str]) -> onnx.ModelProto:
    """The model with values called otherwise, in subgraphs, too."""
    stack = [proto.graph]
    while stack:
        graph = stack.pop()
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = new.get(value.name, value.name)
        for node in graph.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
            for attribute in node.attribute:
                stack.extend(g for g in (attribute.g, *attribute.graphs) if g.node)
    return proto
