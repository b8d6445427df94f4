"""The part of a model that depends on constants only, as a model of its own that ONNX Runtime can run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Run
from graphopt.runtime.values import STRING, FileRange, Tensor
from graphopt.storage.weights import MappedFile, MappedTensor, SparseTensor
from graphopt_passes.analysis.determinism import Functions, is_deterministic

if TYPE_CHECKING:
    from graphopt.runtime.values import Value

_FED = 4096  # bytes; larger constants are fed, so that they need not be copied into the model
# Constants stay quantized, and a sequence cannot be an initializer.
_KEPT = ("Constant", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True)
class Scope:
    """A graph with its subgraphs: the main graph, or a function's body, under one set of opset imports."""

    graph: ir.Graph
    imports: Mapping[str, int]
    functions: Functions


def scopes(model: ir.Model) -> Iterator[Scope]:
    """The main graph and the functions' bodies."""
    yield Scope(model.graph, model.opset_imports, model.functions)
    for function in model.functions.values():
        yield Scope(function.graph, function.opset_imports, model.functions)


def foldable(scope: Scope, run: Run, stuck: set[ir.Node]) -> list[ir.Node]:
    """The nodes that depend on constants only, in an order in which they can run.

    Args:
        scope: where to look.
        run: knows the nodes that the user wants to keep.
        stuck: nodes that are known not to fold.
    """
    known: set[ir.Value] = set()
    found: list[ir.Node] = []

    def visit(graph: ir.Graph) -> None:
        for node in graph:
            if node not in stuck and _depends_on(node, known) and _may_fold(node, scope, run):
                found.append(node)
                known.update(node.outputs)
                continue
            for subgraph in g.subgraphs(node):
                visit(subgraph)

    visit(scope.graph)
    return found


def _depends_on(node: ir.Node, known: set[ir.Value]) -> bool:
    return all(value is None or value in known or is_stored(value) for value in node.inputs)


def _may_fold(node: ir.Node, scope: Scope, run: Run) -> bool:
    if g.is_op(node, *_KEPT) or run.keeps(node) or g.is_dead(node):
        return False
    if any(found.is_ref() for found in node.attributes.values()):
        return False
    if g.has_subgraph(node) and not all(map(is_stored, g.captures(node))):
        return False
    return is_deterministic(node, scope.imports, scope.functions)


def is_stored(value: ir.Value) -> bool:
    """Whether a value is a constant of the file; sparse ones are left as they are."""
    tensor = g.constant(value)
    return tensor is not None and not isinstance(tensor, SparseTensor)


def frontier(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """The values that other nodes, or callers of the model, need from these nodes."""
    inside = set(nodes)
    return [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in inside for use in value.uses())
    ]


def with_makers(nodes: Iterable[ir.Node], candidates: list[ir.Node]) -> list[ir.Node]:
    """The nodes and those of the candidates that they depend on, in the order of the candidates.

    A value that is too large to be stored may still be computed for a small one that depends on it.
    """
    needed = set(nodes)
    for node in reversed(candidates):
        if node in needed:
            needed.update(maker for value in node.inputs if value is not None and (maker := value.producer()))
    return [node for node in candidates if node in needed]


@dataclass
class Cone:
    """Nodes of one scope that depend on constants only, as a protobuf; every value gets a name of its own.

    Sibling branches may use one name twice, so the model's names would not do.
    """

    scope: Scope
    ir_version: int
    _names: dict[ir.Value, str] = field(default_factory=dict)

    def build(self, nodes: list[ir.Node], outputs: list[ir.Value]) -> tuple[bytes, dict[str, Value]]:
        """A serialized model that computes ``outputs``, and the weights to feed to it."""
        imports = [onnx.helper.make_operatorsetid(*found) for found in self.scope.imports.items()]
        proto = onnx.ModelProto(ir_version=max(self.ir_version, 4), opset_import=imports)
        proto.graph.name = "constants"
        proto.functions.extend(map(ir.serde.serialize_function, self._called(nodes)))
        feeds: dict[str, Value] = {}
        for value in _constants(nodes):
            self._add_constant(proto.graph, value, feeds)
        proto.graph.node.extend(map(self._node, nodes))
        proto.graph.output.extend(onnx.ValueInfoProto(name=self.name(value)) for value in outputs)
        return proto.SerializeToString(), feeds

    def name(self, value: ir.Value) -> str:
        """What a value is called in the protobuf; no name of the model's own starts like that."""
        return self._names.setdefault(value, f"\N{NUMBER SIGN}{len(self._names)}")

    def _called(self, nodes: Iterable[ir.Node]) -> list[ir.Function]:
        called: dict[ir.OperatorIdentifier, ir.Function] = {}
        stack = list(nodes) if self.scope.functions else []
        while stack:
            node = stack.pop()
            function = self.scope.functions.get(node.op_identifier())
            if function is not None and node.op_identifier() not in called:
                called[node.op_identifier()] = function
                stack.extend(function.all_nodes())
            stack.extend(inner for graph in g.subgraphs(node) for inner in graph)
        return list(called.values())

    def _add_constant(self, graph: onnx.GraphProto, value: ir.Value, feeds: dict[str, Value]) -> None:
        tensor = g.constant(value)
        assert tensor is not None
        name = self.name(value)
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes < _FED:
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
            graph.initializer[-1].name = name
            return
        dims = tuple(tensor.shape.numpy())
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.dtype.value, dims))
        feeds[name] = Tensor(tensor.dtype.value, dims, _data(tensor))

    def _node(self, node: ir.Node) -> onnx.NodeProto:
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, overload=node.overload)
        proto.attribute.extend(map(ir.serde.serialize_attribute, node.attributes.values()))
        captured = {value.name: self.name(value) for value in g.captures(node)}
        for attribute in proto.attribute:
            for graph in (attribute.g, *attribute.graphs) if captured else ():
                _rename(graph, captured)
        proto.input[:] = ["" if value is None else self.name(value) for value in node.inputs]
        proto.output[:] = [self.name(value) if value.name else "" for value in node.outputs]
        return proto


def _rename(graph: onnx.GraphProto, names: Mapping[str | None, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)


def _constants(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    used = (value for node in nodes for value in g.reads(node))
    return [value for value in dict.fromkeys(used) if g.constant(value) is not None]


def _data(tensor: ir.TensorProtocol) -> bytes | FileRange:
    if isinstance(tensor, MappedTensor) and isinstance(tensor.file, MappedFile):
        path = tensor.file.shared_path()
        if path is not None:
            return FileRange(path, tensor.offset, tensor.length)
    return tensor.tobytes()


def to_ir(tensor: Tensor, name: str, opened: Callable[[Path], MappedFile]) -> ir.TensorProtocol:
    """A result of ONNX Runtime as a tensor of the graph; large ones stay in the worker's file.

    Args:
        tensor: the result.
        name: what the tensor is to be called.
        opened: the file at a path; results share files, and each is to be opened once.
    """
    dtype, shape = ir.DataType(tensor.elem_type), ir.Shape(tensor.shape)
    if tensor.elem_type == STRING:
        texts = [text.encode() for text in tensor.numpy().flat]
        return ir.StringTensor(texts, shape=shape, name=name)
    if isinstance(tensor.data, FileRange):
        found = tensor.data
        return MappedTensor(opened(Path(found.path)), found.offset, dtype, shape, name)
    if dtype.bitwidth < 8:
        return ir.PackedTensor(np.array(tensor.raw()), dtype, shape=shape, name=name)
    return ir.Tensor(tensor.numpy(), dtype, shape=shape, name=name)
