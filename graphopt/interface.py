"""The contract of a model, which no optimization may change; compare two models' contracts."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from graphopt.legacy import FIRST_WITH_CONSTANTS
from graphopt.model import Model


@dataclass(frozen=True)
class Port:
    """An input or output: its name, type as text (dims, dim_params, denotations), doc string, metadata."""

    name: str
    type: str
    doc_string: str
    metadata_props: Mapping[str, str]


@dataclass(frozen=True)
class Interface:
    """What users of a model rely on.

    Attributes:
        inputs, outputs: the ports, in order.
        overridable: the inputs that have a default value.
        properties: domain, version, doc string and producer of the model, name and doc string of the graph.
        metadata_props: the model's metadata.
        graph_metadata_props: the graph's metadata.
        opset_imports: domain → version; the default domain is the empty string.
        ir_version: the version of the file format.
        functions: (domain, name, overload) of the model-local functions.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    overridable: frozenset[str]
    properties: Mapping[str, Any]
    metadata_props: Mapping[str, str]
    graph_metadata_props: Mapping[str, str]
    opset_imports: Mapping[str, int]
    ir_version: int
    functions: frozenset[tuple[str, str, str]]

    def with_floats(self) -> Interface:
        """The contract with float in place of half types; what ``--convert-io`` changes is then the same."""
        inputs, outputs = (tuple(map(_with_float, ports)) for ports in (self.inputs, self.outputs))
        return replace(self, inputs=inputs, outputs=outputs)

    @classmethod
    def of(cls, model: Model | onnx.ModelProto) -> Interface:
        """The contract of a model."""
        proto = model.skeleton() if isinstance(model, Model) else model
        graph = proto.graph
        defaults = {tensor.name for tensor in graph.initializer}
        defaults |= {sparse.values.name for sparse in graph.sparse_initializer}
        return cls(
            inputs=tuple(_port(info) for info in graph.input),
            outputs=tuple(_port(info) for info in graph.output),
            overridable=frozenset(info.name for info in graph.input if info.name in defaults),
            properties={
                "domain": proto.domain,
                "model version": proto.model_version,
                "doc string": proto.doc_string,
                "producer name": proto.producer_name,
                "producer version": proto.producer_version,
                "graph name": graph.name,
                "graph doc string": graph.doc_string,
            },
            metadata_props=_props(proto.metadata_props),
            graph_metadata_props=_props(graph.metadata_props),
            opset_imports={_domain(opset.domain): opset.version for opset in proto.opset_import},
            ir_version=proto.ir_version,
            functions=frozenset((f.domain, f.name, f.overload) for f in proto.functions),
        )


def differences(before: Interface, after: Interface, frozen: Collection[str] = ()) -> list[str]:
    """What broke the contract, one readable line each; empty if nothing did.

    Args:
        before: the original's contract.
        after: the result's.
        frozen: inputs with a default value that the user asked to turn into constants.
    """
    inputs = [port for port in before.inputs if not (port.name in frozen and port.name in before.overridable)]
    found = [*_ports("input", inputs, after.inputs), *_ports("output", before.outputs, after.outputs)]
    kept = {port.name for port in after.inputs}
    lost = (before.overridable & kept) - after.overridable
    found += [f"input {name!r} has lost its default value" for name in sorted(lost)]
    found += [
        f"input {name!r} has gained a default value"
        for name in sorted(after.overridable - before.overridable)
    ]
    found += _changed("the", before.properties, after.properties)
    found += _changed("metadata", before.metadata_props, after.metadata_props)
    found += _changed("graph metadata", before.graph_metadata_props, after.graph_metadata_props)
    for domain, version in sorted(before.opset_imports.items()):
        kept_version = after.opset_imports.get(domain)
        if kept_version is None or kept_version < version:
            found.append(f"the opset of domain {domain!r} was {version} and is {kept_version}")
    if after.ir_version < before.ir_version:
        found.append(f"the IR version was {before.ir_version} and is {after.ir_version}")
    return found


def notices(before: Interface, after: Interface) -> list[str]:
    """What passes may change if the report says so: newer versions, added opsets, lost functions."""
    said = []
    if after.ir_version > before.ir_version:
        unlisted = before.ir_version < FIRST_WITH_CONSTANTS <= after.ir_version
        told = ": initializers are no longer listed as inputs" if unlisted else ""
        said.append(f"IR version {before.ir_version} became {after.ir_version}{told}")
    for domain, version in sorted(before.opset_imports.items()):
        if after.opset_imports.get(domain, 0) > version:
            said.append(f"opset {version} of domain {domain!r} became {after.opset_imports[domain]}")
    for domain in sorted(set(after.opset_imports) - set(before.opset_imports)):
        said.append(f"opset {after.opset_imports[domain]} of domain {domain!r} was added")
    for domain, name, overload in sorted(before.functions - after.functions):
        said.append(f"function {domain}::{name}{':' + overload if overload else ''} is gone")
    return said


def _ports(kind: str, before: Iterable[Port], after: Iterable[Port]) -> list[str]:
    old, new = list(before), list(after)
    names = [port.name for port in old], [port.name for port in new]
    if names[0] != names[1]:
        return [f"the {kind}s were {_list(names[0])} and are {_list(names[1])}"]
    found = []
    for was, now in zip(old, new, strict=True):
        for what, get in _ASPECTS.items():
            if get(was) != get(now):
                found.append(f"{kind} {was.name!r}: the {what} was {get(was)} and is {get(now)}")
    return found


_ASPECTS: dict[str, Callable[[Port], Any]] = {
    "type": lambda port: port.type,
    "doc string": lambda port: repr(port.doc_string),
    "metadata": lambda port: dict(port.metadata_props),
}


def _changed(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    keys = sorted(set(before) | set(after))
    return [
        f"{what} {key!r} was {before.get(key)!r} and is {after.get(key)!r}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _port(info: onnx.ValueInfoProto) -> Port:
    return Port(info.name, type_text(info.type), info.doc_string, _props(info.metadata_props))


def type_text(proto: onnx.TypeProto) -> str:
    """A type for people and for comparison: ``float[N,3]``, ``seq(map(int64,float))``, ``?`` if unknown.

    Denotations follow in braces.
    """
    kind = proto.WhichOneof("value")
    denotation = f"{{{proto.denotation}}}" if proto.denotation else ""
    return (_TYPE_TEXT[kind](proto) if kind else "?") + denotation


_TYPE_TEXT: dict[str, Callable[[onnx.TypeProto], str]] = {
    "tensor_type": lambda p: _tensor_text(p.tensor_type),
    "sparse_tensor_type": lambda p: f"sparse({_tensor_text(p.sparse_tensor_type)})",
    "sequence_type": lambda p: f"seq({type_text(p.sequence_type.elem_type)})",
    "optional_type": lambda p: f"optional({type_text(p.optional_type.elem_type)})",
    "map_type": lambda p: f"map({_elem_text(p.map_type.key_type)},{type_text(p.map_type.value_type)})",
    "opaque_type": lambda p: f"opaque({p.opaque_type.domain}.{p.opaque_type.name})",
}


def _tensor_text(tensor: onnx.TypeProto.Tensor | onnx.TypeProto.SparseTensor) -> str:
    if not tensor.HasField("shape"):
        return _elem_text(tensor.elem_type)
    return f"{_elem_text(tensor.elem_type)}[{','.join(_dim_text(dim) for dim in tensor.shape.dim)}]"


def _dim_text(dim: onnx.TensorShapeProto.Dimension) -> str:
    denotation = f"{{{dim.denotation}}}" if dim.denotation else ""
    value = str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
    return value + denotation


def _elem_text(elem_type: int) -> str:
    return str(onnx.TensorProto.DataType.Name(elem_type)).lower()


def _with_float(port: Port) -> Port:
    return replace(port, type=re.sub(r"\bb?float16\b", "float", port.type))


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _props(entries: Iterable[onnx.StringStringEntryProto]) -> dict[str, str]:
    return {entry.key: entry.value for entry in entries}
