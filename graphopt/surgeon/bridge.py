"""Bridge for passes written over ``onnx_graphsurgeon.Graph``.

onnx-graphsurgeon loses much of a model on the way in and out: metadata, doc strings, overridable
initializers, types of sequences, and more. So the graph is exported twice, before the edit and after it, and
what the edit did not touch is taken from the original (:mod:`graphopt.surgeon.merge`). Large weights stay in
their files: the graph holds tickets for them, and reads one when the pass asks for its ``.values``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from google.protobuf.message import Message
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from graphopt import graph as g
from graphopt.errors import GraphoptError
from graphopt.pipeline import Pass, Run
from graphopt.storage.decode import decode_model
from graphopt.storage.encode import encode_model
from graphopt.storage.typeproto import OpaqueType
from graphopt.storage.weights import DataFiles, MappedTensor, MemoryFile
from graphopt.surgeon.merge import merge

if TYPE_CHECKING:
    from graphopt.model import Model

_TICKET = "\0graphopt-ticket"  # the external location of every ticket; no file can have this name
# What onnx-graphsurgeon 0.6 writes back wrong, or not at all, once the values were read.
_UNREADABLE = frozenset(
    {"STRING", "INT2", "UINT2", "INT4", "UINT4", "FLOAT4E2M1", "FLOAT6E2M3", "FLOAT6E3M2", "FLOAT8E4M3FNUZ"}
)


class CannotHoldError(Exception):
    """onnx-graphsurgeon cannot hold something in the model; the pass is refused with this reason."""


@dataclass(frozen=True)
class SurgeonPass(Pass):
    """A pass that edits an ``onnx_graphsurgeon.Graph``; a whole edit counts as one rewrite.

    The graph is a copy. Nodes, values and fields that the edit leaves alone come back exactly as they were,
    the model's inputs and outputs must stay, and a model that onnx-graphsurgeon cannot hold is refused with
    the reason.
    """

    @abstractmethod
    def edit(self, graph: gs.Graph) -> object:
        """Change the graph in place; the return value is ignored: what changed is found by comparison."""

    def apply(self, model: Model, run: Run) -> bool:
        """Run the edit on a converted copy and take its result over; returns whether anything changed."""
        try:
            edited = self._edited(model, run)
        except CannotHoldError as reason:
            run.journal.refuse(self.name, "the model", str(reason))
            return False
        if edited is None or not run.journal.admit(self.name, model.ir.graph.outputs[0].name or ""):
            return False
        model.ir = edited
        run.forget()
        return True

    def _edited(self, model: Model, run: Run) -> ir.Model | None:
        """The edited model, or None when the edit changed nothing."""
        _require_holdable(model.ir)
        desk = _Tickets()
        original = encode_model(model.ir, desk.place)
        defaults = _take_overridable(original)
        graph, before = _import(original, desk)
        with _quiet():
            self.edit(graph)
        after = _export(graph)
        _collect_captured(after, original)
        if _bytes(after) == _bytes(before):
            return None
        merged = merge(original, before, after)
        _require_same_interface(original, merged)
        _require_kept(original, merged, run)
        merged.graph.initializer.extend(defaults)
        return desk.decode(merged)


def surgeon_pass(function: Callable[[gs.Graph], object]) -> SurgeonPass:
    """A pass from a function that edits a graph in place (a decorator); it is called like the function."""
    body = {
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "name": function.__name__.replace("_", "-"),
        "edit": lambda self, graph: function(graph),
    }
    made: SurgeonPass = type(function.__name__, (SurgeonPass,), body)()
    return made


class _Tickets(MemoryFile):
    """Hands out a ticket, external data at offset ``n``, for the n-th large tensor, and takes it back."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.size = 1 << 62  # decoding checks that a ticket lies within its file
        self.tensors: list[ir.TensorProtocol] = []

    def place(self, proto: onnx.TensorProto, tensor: ir.TensorProtocol, initializer: bool) -> None:
        """Write a ticket instead of the data."""
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, value in ("location", _TICKET), ("offset", len(self.tensors)), ("length", tensor.nbytes):
            proto.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)

    def held(self, proto: onnx.TensorProto) -> ir.TensorProtocol:
        """The tensor of a ticket, or of a proto that has its data."""
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            return self.tensors[int(proto.external_data[1].value)]
        return ir.serde.TensorProtoTensor(proto)

    def decode(self, proto: onnx.ModelProto) -> ir.Model:
        """The model, with the very tensors that were handed in."""
        try:
            model = decode_model(proto, self, _TICKET, DataFiles(None))
        except GraphoptError as error:
            raise CannotHoldError(f"the edited graph is invalid: {error}") from error
        for graph in g.graphs(model):
            for value in graph.initializers.values():
                value.const_value = self._redeem(value.const_value)
            for node in graph:
                self._redeem_attributes(node)
        return model

    def _redeem_attributes(self, node: ir.Node) -> None:
        for name, attribute in list(node.attributes.items()):
            if attribute.type is ir.AttributeType.TENSOR and not attribute.is_ref():
                node.attributes[name] = ir.AttrTensor(name, self._redeem(attribute.value))

    def _redeem(self, tensor: Any) -> Any:
        if isinstance(tensor, MappedTensor) and tensor.file is self:
            return self.tensors[tensor.offset]
        return tensor


class _Weight(LazyValues):  # type: ignore[misc]
    """The values of a constant, read when a pass asks for them."""

    def __init__(self, proto: onnx.TensorProto, desk: _Tickets) -> None:
        super().__init__(proto)
        self._desk = desk

    def load(self) -> np.ndarray[Any, Any]:
        """A copy of the values."""
        tensor = self._desk.held(self.tensor)
        if tensor.dtype.name in _UNREADABLE:
            raise CannotHoldError(
                f"the edit reads '{self.tensor.name}', and graphsurgeon cannot write {tensor.dtype.name} back"
            )
        return np.array(tensor.numpy())


class _SparseWeight(SparseValues):  # type: ignore[misc]
    """A sparse constant; onnx-graphsurgeon reads only some of the fields that may hold its values."""

    def load(self) -> np.ndarray[Any, Any]:
        """Refuse: the values would come back dense."""
        raise CannotHoldError(f"the edit reads the sparse constant '{self.tensor.values.name}'")


def _require_holdable(model: ir.Model) -> None:
    overloads = [function for function in model.functions.values() if function.overload]
    if overloads:
        raise CannotHoldError(f"graphsurgeon knows no overloads, and function '{overloads[0].name}' has one")
    for graph in g.graphs(model):
        _require_known_types(graph)
        for value in graph.initializers.values() if graph is not model.graph else ():
            if any(use.node.graph is not graph for use in value.uses()):
                raise CannotHoldError(f"initializer '{value.name}' of a subgraph is captured by a deeper one")


def _require_known_types(graph: ir.Graph) -> None:
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if isinstance(value.type, ir.OptionalType | OpaqueType):
            raise CannotHoldError(f"graphsurgeon cannot hold the type of '{value.name}': {value.type}")


def _take_overridable(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Remove initializers that are also inputs, which graphsurgeon would take for constants."""
    inputs = {value.name for value in model.graph.input}
    taken = [tensor for tensor in model.graph.initializer if tensor.name in inputs]
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in inputs]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return taken


def _import(original: onnx.ModelProto, desk: _Tickets) -> tuple[gs.Graph, onnx.ModelProto]:
    """The graph and its export; importing and exporting it fails where graphsurgeon cannot hold the model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(original)  # graphsurgeon keeps references into what it imports
    try:
        with _quiet():
            graph = gs.import_onnx(copy)
            for constant in _constants(graph):
                constant.values = _lazy(constant, desk)
                constant.data_location = None  # else what the edit changes would be said to lie in a file
        before = _export(graph)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CannotHoldError(f"graphsurgeon cannot hold this model: {reason[:200]}") from error
    _collect_captured(before, original)
    return graph, before


def _export(graph: gs.Graph) -> onnx.ModelProto:
    with _quiet():
        exported: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    for part in (exported.graph, *_subgraphs(exported.graph.node)):
        nodes = [node for node in part.node if any(node.output)]  # what an edit cut off has no outputs
        del part.node[:]
        part.node.extend(nodes)
    return exported


def _lazy(constant: gs.Constant, desk: _Tickets) -> LazyValues:
    held = constant._values
    if isinstance(held, SparseValues):
        return _SparseWeight(held.tensor)
    return _Weight(held.tensor, desk)


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Every constant whose values were not read yet, in subgraphs, functions and attributes too."""
    for part in (graph, *graph.functions):
        for inner in (part, *part.subgraphs(recursive=True)):
            held = [*inner.tensors().values(), *(a for node in inner.nodes for a in node.attrs.values())]
            yield from (t for t in held if isinstance(t, gs.Constant) and isinstance(t._values, LazyValues))


def _quiet() -> Any:
    """onnx-graphsurgeon prints warnings to standard output, which belongs to the command line's result."""
    return G_LOGGER.suppress(G_LOGGER.CRITICAL + 1)


def _collect_captured(exported: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Move weights back to the main graph; graphsurgeon copies them into each subgraph that captures them."""
    owned = {tensor.name for tensor in original.graph.initializer}
    present = {tensor.name for tensor in exported.graph.initializer}
    for graph in _subgraphs(exported.graph.node):
        for tensor in list(graph.initializer):
            if tensor.name in owned:
                graph.initializer.remove(tensor)
                if tensor.name not in present:
                    exported.graph.initializer.append(tensor)
                    present.add(tensor.name)


def _subgraphs(nodes: Any) -> Iterator[onnx.GraphProto]:
    """The graphs in the attributes of nodes, at any depth."""
    for node in nodes:
        for attribute in node.attribute:
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield graph
                yield from _subgraphs(graph.node)


def _require_same_interface(original: onnx.ModelProto, edited: onnx.ModelProto) -> None:
    for kind in ("input", "output"):
        before, after = list(getattr(original.graph, kind)), list(getattr(edited.graph, kind))
        if before != after:
            changed = [a.name for a, b in zip(before, after, strict=False) if a != b] or [
                value.name for value in [*before, *after][min(len(before), len(after)) :]
            ]
            raise CannotHoldError(f"the edit changes the model's {kind}s, beginning with '{changed[0]}'")


def _require_kept(original: onnx.ModelProto, edited: onnx.ModelProto, run: Run) -> None:
    """Refuse an edit that touches a node which the user asked to leave alone."""
    after = {_bytes(node) for node in _nodes(edited)} if run.keep else set()
    for node in _nodes(original):
        kept = node.op_type in run.keep or node.name in run.keep
        if kept and _bytes(node) not in after:
            raise CannotHoldError(f"the edit changes {node.op_type} '{node.name}', which --keep protects")


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    for body in bodies:
        yield from body
        for graph in _subgraphs(body):
            yield from graph.node


def _bytes(message: Message) -> bytes:
    """What two messages are compared by; as messages, two NaN would differ."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data
