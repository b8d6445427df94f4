"""What a model is: its interface, its opsets, its precision, and what it costs by operator and by layer.

Reads the graph only; weights stay in their files and ONNX Runtime is not needed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from graphopt import graph as g
from graphopt.cost import macs_of
from graphopt.errors import UsageError
from graphopt.interface import Interface
from graphopt.journal import Journal
from graphopt.legacy import as_ir4
from graphopt.model import Model
from graphopt.samples.inputs import spell
from graphopt.shapes.inference import Shapes

_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_INTEGER_MATH = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"})


@dataclass(frozen=True)
class Port:
    """An input or output: its name, its type such as ``float[N,3]``, its dims (None: not stated)."""

    name: str
    type: str
    dims: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Layer:
    """One node: what it makes and what it costs; ``macs`` is None where its shapes are not known."""

    name: str
    op: str
    output: str
    dims: tuple[int | str | None, ...] | None
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class OpCost:
    """All nodes of one operator; ``macs`` is None where no node's are known."""

    op: str
    nodes: int
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class Inspection:
    """The facts of one model.

    Attributes:
        file_bytes: the .onnx file; external_files: the other files that hold weights, with their bytes.
        overridable: inputs that have an initializer as their default; before IR 4 callers cannot override it.
        dynamic_dims: the named dims of the inputs, and ``input[axis]`` for dims without a name.
        nodes: functions and subgraphs included, Constants not counted.
        precision: elements of weights per type.
        quantization: nodes of QuantizeLinear and the like, and of integer arithmetic.
        macs: multiply-accumulates of one inference; None if not one layer's are known.
        unknown_macs: nodes whose multiply-accumulates need shapes that are not known.
    """

    path: str
    file_bytes: int
    external_files: dict[str, int]
    ir_version: int
    opsets: dict[str, int]
    producer: str
    domain: str
    model_version: int | None
    doc_string: str
    metadata: dict[str, str]
    graph_name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    overridable: tuple[str, ...]
    dynamic_dims: tuple[str, ...]
    nodes: int
    functions: tuple[str, ...]
    subgraphs: int
    parameters: int
    precision: dict[str, int]
    quantization: dict[str, int]
    macs: int | None
    unknown_macs: int
    ops: tuple[OpCost, ...]
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, path: str | Path, dims: Mapping[str, tuple[int, ...]] | None = None) -> Inspection:
        """Inspect a file.

        Args:
            path: the model.
            dims: numbers for the dims of inputs, so that costs can be counted.

        Raises:
            UsageError: no such file, or a shape does not fit the model.
            InvalidModelError: the file is no valid model.
        """
        model = Model.load(path)
        dynamic = _dynamic_dims(model.ir.graph.inputs)
        inputs, outputs = _ports(model)
        fix_dims(model.ir, dims or {})
        with as_ir4(model, Journal()):  # in IR 3, weights that are listed as inputs are constants
            layers = _layers(model.ir)
        external = {str(file): file.stat().st_size for file in model.files() - {Path(path)}}
        precision = _precision(model.ir)
        return cls(
            path=str(path),
            file_bytes=Path(path).stat().st_size,
            external_files=external,
            ir_version=int(model.ir.ir_version),
            opsets={domain or "ai.onnx": version for domain, version in model.ir.opset_imports.items()},
            producer=" ".join(filter(None, (model.ir.producer_name, model.ir.producer_version))),
            domain=model.ir.domain or "",
            model_version=model.ir.model_version,
            doc_string=model.ir.doc_string or "",
            metadata=dict(model.ir.metadata_props),
            graph_name=model.ir.graph.name or "",
            inputs=inputs,
            outputs=outputs,
            overridable=_overridable(model.ir),
            dynamic_dims=dynamic,
            nodes=len(layers),
            functions=tuple(sorted(f"{key[0]}::{key[1]}" for key in model.ir.functions)),
            subgraphs=sum(1 for _ in model.ir.graph.subgraphs()),
            parameters=sum(precision.values()),
            precision=precision,
            quantization=quantization(model.ir),
            macs=_total(layer.macs for layer in layers),
            unknown_macs=sum(layer.macs is None for layer in layers),
            ops=_by_op(layers),
            layers=layers,
        )


def _ports(model: Model) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and the outputs."""
    interface = Interface.of(model)
    inputs, outputs = (
        tuple(Port(port.name, port.type, _dims(value)) for port, value in zip(ports, values, strict=True))
        for ports, values in (
            (interface.inputs, model.ir.graph.inputs),
            (interface.outputs, model.ir.graph.outputs),
        )
    )
    return inputs, outputs


def _overridable(model: ir.Model) -> tuple[str, ...]:
    return tuple(v.name or "" for v in model.graph.inputs if v.is_initializer())


def _dims(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def _dynamic_dims(inputs: Iterable[ir.Value]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for value in inputs:
        for axis, dim in enumerate(_dims(value) or ()):
            if not isinstance(dim, int) or dim < 0:
                names[dim if isinstance(dim, str) and dim else f"{value.name}[{axis}]"] = None
    return tuple(names)


def fix_dims(model: ir.Model, dims: Mapping[str, tuple[int, ...]]) -> None:
    """Give inputs the dims that the user stated; every input with the same named dim follows."""
    inputs = {value.name or "": value for value in model.graph.inputs}
    named: dict[str, int] = {}
    for name, numbers in dims.items():
        if name not in inputs:
            raise UsageError(f"--shape: the model has no input '{name}'; it has {', '.join(inputs)}")
        named |= _match(inputs[name], numbers)
        inputs[name].shape = ir.Shape(numbers)
    for value in inputs.values():
        if value.shape is not None:
            value.shape = ir.Shape([named.get(str(dim), dim) for dim in _dims(value) or ()])


def _match(value: ir.Value, dims: tuple[int, ...]) -> dict[str, int]:
    """The numbers that a shape gives to the named dims of an input."""
    stated = _dims(value)
    if stated is None:
        return {}
    fits = len(stated) == len(dims)
    if not fits or any(isinstance(a, int) and a not in (b, -1) for a, b in zip(stated, dims, strict=True)):
        raise UsageError(f"shape {spell(dims)} does not fit input {value.name!r}, which is {spell(stated)}")
    return {a: b for a, b in zip(stated, dims, strict=True) if isinstance(a, str)}


def _layers(model: ir.Model) -> tuple[Layer, ...]:
    shapes = Shapes.infer(model)
    seen: set[ir.Value] = set()
    return tuple(_layer(node, shapes, seen) for node in g.nodes(model) if not g.is_op(node, "Constant"))


def _layer(node: ir.Node, shapes: Shapes, seen: set[ir.Value]) -> Layer:
    op = node.op_type if node.domain in g.DEFAULT_DOMAINS else f"{node.domain}::{node.op_type}"
    dims = shapes.dims(next((value for value in node.outputs if value.name), None))
    shown = (
        None if dims is None else tuple(d if isinstance(d, int) or d[0] not in "?~" else None for d in dims)
    )
    output = g.output_name(node)
    return Layer(node.name or output, op, output, shown, _parameters(node, seen), macs_of(node, shapes))


def _parameters(node: ir.Node, seen: set[ir.Value]) -> int:
    """Elements of the weights that the node is the first to use."""
    total = 0
    for value in node.inputs:
        tensor = value.const_value if value is not None and value.is_initializer() else g.constant(value)
        if value is not None and tensor is not None and value not in seen:
            seen.add(value)
            total += tensor.size
    return total


def _by_op(layers: Sequence[Layer]) -> tuple[OpCost, ...]:
    groups: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[layer.op].append(layer)
    costs = (
        OpCost(op, len(group), sum(x.parameters for x in group), _total(x.macs for x in group))
        for op, group in groups.items()
    )
    return tuple(sorted(costs, key=lambda c: (-(c.macs or 0), -c.parameters, -c.nodes, c.op)))


def _total(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _precision(model: ir.Model) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for graph in g.graphs(model):
        tensors = [value.const_value for value in graph.initializers.values()]
        tensors += [g.constant_node_tensor(node) for node in graph if g.is_op(node, "Constant")]
        for tensor in tensors:
            if tensor is not None:
                sizes[tensor.dtype.name.lower()] += tensor.size
    return dict(sizes.most_common())


def quantization(model: ir.Model) -> dict[str, int]:
    """Quantizing operators, and those of integer arithmetic → number of nodes."""
    ops = Counter(node.op_type for node in g.nodes(model))
    return {op: ops[op] for op in sorted(_QUANTIZED | _INTEGER_MATH) if ops[op]}
