"""ONNX protobuf → onnx-ir, without loss.

onnx-ir's own reader drops sparse initializers, refuses map types and sparse attributes, writes the type of an
output over that of the input that it returns, and accepts models in which a value is not defined. This one
keeps what the protobuf says, and refuses a model that no runtime could run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.errors import InvalidModelError, UnsupportedModelError
from graphopt.storage.tensorproto import TensorReader, props
from graphopt.storage.typeproto import decode_type
from graphopt.storage.validity import check_recursion, check_text, check_versions
from graphopt.storage.weights import DataFiles, MappedFile, MemoryFile

DECLARED = "graphopt.value_info"
"""Key in a value's meta: the value_info that the model has for an input or output; None for initializers."""
OUTPUT_INFO = "graphopt.output"
"""Key in a value's meta: what the graph's outputs say of a value that is described elsewhere, a list."""
LEFTOVERS = "graphopt.leftovers"
"""Key in a graph's meta: a GraphProto of the annotations that belong to no value of the graph."""
QUANTIZATION = "quant_parameter_tensor_names"
"""onnx-ir's key in a value's meta for its quantization_annotation."""

ATTRIBUTE_FIELDS: dict[ir.AttributeType, str] = {
    ir.AttributeType.FLOAT: "f",
    ir.AttributeType.INT: "i",
    ir.AttributeType.STRING: "s",
    ir.AttributeType.TENSOR: "t",
    ir.AttributeType.GRAPH: "g",
    ir.AttributeType.SPARSE_TENSOR: "sparse_tensor",
    ir.AttributeType.TYPE_PROTO: "tp",
    ir.AttributeType.FLOATS: "floats",
    ir.AttributeType.INTS: "ints",
    ir.AttributeType.STRINGS: "strings",
    ir.AttributeType.TENSORS: "tensors",
    ir.AttributeType.GRAPHS: "graphs",
    ir.AttributeType.SPARSE_TENSORS: "sparse_tensors",
    ir.AttributeType.TYPE_PROTOS: "type_protos",
}
"""The field of AttributeProto that holds a value of the type."""
PLAIN = frozenset({"f", "i", "floats", "ints"})
REPEATED = frozenset({"floats", "ints", "strings", "tensors", "graphs", "sparse_tensors", "type_protos"})


def decode_model(
    proto: onnx.ModelProto, source: MappedFile | MemoryFile, self_location: str, data_files: DataFiles
) -> ir.Model:
    """Turn a parsed model into onnx-ir's.

    Args:
        proto: the model without its large weights; it becomes part of the result and must not be changed.
        source: the file that the model was cut from.
        self_location: the external location that stands for ``source``.
        data_files: opens the external data.

    Raises:
        InvalidModelError: a value is undefined or defined twice, the graph has a cycle, a tensor's data is
            missing or not of the size that it claims, no IR version or opset is stated.
        UnsupportedModelError: the IR version or opset is newer than the installed onnx, or the model carries
            training information.
    """
    check_versions(proto)
    return _Decoder(source, self_location, data_files).model(proto)


class _Scope(dict[str, ir.Value]):
    """The values of one graph by name; nodes may also read those of the graphs around it."""

    def __init__(self, outer: _Scope | None, where: str) -> None:
        super().__init__()
        self.outer = outer
        self.where = where
        self.made: set[str] = set()  # names whose node has been read, or that need none

    def define(self, name: str, value: ir.Value, made: bool) -> ir.Value:
        if name in self:
            raise InvalidModelError(f"value {name!r} is defined twice in {self.where}")
        self[name] = value
        if made:
            self.made.add(name)
        return value


class _Decoder:
    def __init__(self, source: MappedFile | MemoryFile, self_location: str, data_files: DataFiles) -> None:
        self._tensors = TensorReader(source, self_location, data_files)
        self._configurations: dict[str, ir.ModelConfiguration] = {}
        self._unsorted: str | None = None  # a value that is read before its node comes

    def model(self, proto: onnx.ModelProto) -> ir.Model:
        check_text(proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
        check_text(*(text for c in proto.configuration for text in (c.name, *c.device)))
        configurations = [ir.serde.deserialize_model_configuration(c) for c in proto.configuration]
        self._configurations = {c.name: c for c in configurations}
        graph = self.graph(proto.graph, None, "the graph")
        self._sort(graph, "the graph")
        graph.opset_imports.update(_opsets(proto.opset_import))
        functions = [self.function(function) for function in proto.functions]
        check_recursion(functions)
        return ir.Model(
            graph,
            ir_version=proto.ir_version,
            producer_name=proto.producer_name or None,
            producer_version=proto.producer_version or None,
            domain=proto.domain or None,
            model_version=proto.model_version or None,
            doc_string=proto.doc_string or None,
            functions=functions,
            metadata_props=props(proto.metadata_props) or None,
            device_configurations=tuple(configurations),
        )

    def _sort(self, graph: ir.Graph, where: str) -> None:
        if self._unsorted is None:
            return
        try:
            graph.sort()
        except ValueError:
            raise InvalidModelError(
                f"{where} has a cycle: value {self._unsorted!r} depends on itself or on a value that does"
            ) from None
        self._unsorted = None

    def function(self, proto: onnx.FunctionProto) -> ir.Function:
        check_text(proto.name, proto.domain, proto.overload, proto.doc_string, *proto.input, *proto.attribute)
        where = f"function {proto.name!r}"
        scope = _Scope(None, where)
        inputs = [scope.define(name, ir.Value(name=name), made=True) for name in proto.input]
        infos = {info.name: info for info in proto.value_info}
        check_text(*infos)
        for value in inputs:
            self._describe(value, infos)
        nodes = self._nodes(proto.node, scope, infos)
        graph = ir.Graph(
            inputs,
            [_output(name, scope) for name in proto.output],
            nodes=nodes,
            name=proto.name,
            doc_string=proto.doc_string or None,
            opset_imports=_opsets(proto.opset_import),
            metadata_props=props(proto.metadata_props) or None,
        )
        self._sort(graph, where)
        attributes = [self.attribute(attribute, None, where) for attribute in proto.attribute_proto]
        attributes += [ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in proto.attribute]
        return ir.Function(proto.domain, proto.name, proto.overload, graph=graph, attributes=attributes)

    def graph(self, proto: onnx.GraphProto, outer: _Scope | None, where: str) -> ir.Graph:
        check_text(proto.name, proto.doc_string)
        scope = _Scope(outer, where)
        inputs = [scope.define(i.name, self._value(i), made=True) for i in proto.input]
        infos = {info.name: info for info in proto.value_info}
        check_text(*infos)
        initializers = self._initializers(proto, scope, infos)
        nodes = self._nodes(proto.node, scope, infos)
        outputs = self._outputs(proto.output, scope, infos)
        for value in inputs:
            if value.name in infos:
                value.meta[DECLARED] = infos[value.name]
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=nodes,
            initializers=initializers,
            doc_string=proto.doc_string or None,
            name=proto.name or None,
            metadata_props=props(proto.metadata_props) or None,
        )
        self._annotate(proto, graph, scope)
        return graph

    def _annotate(self, proto: onnx.GraphProto, graph: ir.Graph, scope: _Scope) -> None:
        """Attach quantization annotations to their values; keep those of other names, as a function's."""
        leftovers = onnx.GraphProto()
        for annotation in proto.quantization_annotation:
            if annotation.tensor_name in scope:
                names = props(annotation.quant_parameter_tensor_names)
                scope[annotation.tensor_name].meta[QUANTIZATION] = names
            else:
                leftovers.quantization_annotation.append(annotation)
        leftovers.value_info.extend(i for i in proto.value_info if i.name not in scope and "::" in i.name)
        if leftovers.ByteSize():
            graph.meta[LEFTOVERS] = leftovers

    def _initializers(
        self, proto: onnx.GraphProto, scope: _Scope, infos: dict[str, onnx.ValueInfoProto]
    ) -> list[ir.Value]:
        tensors: Iterable[ir.TensorProtocol] = [
            self._tensors.tensor(t, scope.where) for t in proto.initializer
        ]
        sparse = [self._tensors.sparse_tensor(s, scope.where) for s in proto.sparse_initializer]
        found: dict[str, ir.Value] = {}
        for tensor in [*tensors, *sparse]:
            name = tensor.name
            if not name:
                raise InvalidModelError(f"an initializer of {scope.where} has no name")
            if name in scope:  # an input with a default value, or stated twice: runtimes use the last
                scope[name].const_value = tensor
            else:
                type_, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy(), frozen=True)
                value = ir.Value(name=name, type=type_, shape=shape, const_value=tensor)
                if name in infos:
                    self._describe(value, infos)
                    value.meta[DECLARED] = None
                scope.define(name, value, made=True)
            found[name] = scope[name]
        return list(found.values())

    def _outputs(
        self,
        protos: Sequence[onnx.ValueInfoProto],
        scope: _Scope,
        infos: dict[str, onnx.ValueInfoProto],
    ) -> list[ir.Value]:
        """Resolve a graph's outputs; inputs and initializers may be outputs, and a value may be several."""
        outputs = [_output(info.name, scope) for info in protos]
        repeated = {value for value, count in Counter(outputs).items() if count > 1}
        described: set[ir.Value] = set()
        for value, info in zip(outputs, protos, strict=True):
            made = value.producer() is not None
            if made and info.name in infos:
                value.meta[DECLARED] = infos[info.name]
            describes = made and value not in described and info.type.WhichOneof("value")
            if describes:
                described.add(value)
                self._fill(value, info)
            if not describes or value in repeated:
                value.meta.setdefault(OUTPUT_INFO, []).append(info)
        return outputs

    def _describe(self, value: ir.Value, infos: dict[str, onnx.ValueInfoProto]) -> None:
        if (info := infos.get(value.name or "")) is not None:
            self._fill(value, info)

    def _value(self, info: onnx.ValueInfoProto) -> ir.Value:
        check_text(info.name)
        value = ir.Value(name=info.name)
        self._fill(value, info)
        return value

    def _fill(self, value: ir.Value, info: onnx.ValueInfoProto) -> None:
        value.type, value.shape = decode_type(info.type, f"value {info.name!r}")
        if info.doc_string:
            check_text(info.doc_string)
            value.doc_string = info.doc_string
        if info.metadata_props:
            value.metadata_props.update(props(info.metadata_props))

    def _nodes(
        self, protos: Sequence[onnx.NodeProto], scope: _Scope, infos: dict[str, onnx.ValueInfoProto]
    ) -> list[ir.Node]:
        for proto in protos:
            check_text(
                proto.name, proto.op_type, proto.domain, proto.overload, proto.doc_string, *proto.output
            )
            for name in proto.output:
                if name:
                    self._describe(scope.define(name, ir.Value(name=name), made=False), infos)
        return [self.node(proto, scope) for proto in protos]

    def node(self, proto: onnx.NodeProto, scope: _Scope) -> ir.Node:
        if not proto.op_type:
            raise InvalidModelError(f"{_label(proto)} of {scope.where} has no operator type")
        inputs = [self._input(name, proto, scope) if name else None for name in proto.input]
        attributes = [self.attribute(a, scope, _label(proto)) for a in proto.attribute]
        outputs = [scope[name] if name else ir.Value(name="") for name in proto.output]
        node = ir.Node(
            proto.domain,
            proto.op_type,
            inputs,
            attributes,
            overload=proto.overload,
            outputs=outputs,
            name=proto.name,
            doc_string=proto.doc_string or None,
            metadata_props=props(proto.metadata_props) or None,
            device_configurations=self._device_configurations(proto, scope),
        )
        scope.made.update(proto.output)
        return node

    def _input(self, name: str, node: onnx.NodeProto, scope: _Scope) -> ir.Value:
        home: _Scope | None = scope
        while home is not None and name not in home:
            home = home.outer
        if home is None:
            raise InvalidModelError(f"{_label(node)} reads {name!r}, which nothing in {scope.where} defines")
        if name not in home.made:
            self._unsorted = name
        return home[name]

    def _device_configurations(self, proto: onnx.NodeProto, scope: _Scope) -> tuple[Any, ...]:
        if not proto.device_configurations:
            return ()
        values: dict[str, ir.Value] = {}
        home: _Scope | None = scope
        while home is not None:
            values = {**home, **values}
            home = home.outer
        return tuple(
            ir.serde.deserialize_node_device_configuration(configuration, values)
            for configuration in proto.device_configurations
        )

    def attribute(self, proto: onnx.AttributeProto, scope: _Scope | None, where: str) -> ir.Attr:
        check_text(proto.name, proto.ref_attr_name, proto.doc_string)
        try:
            kind = ir.AttributeType(proto.type) if proto.type else _guess_type(proto)
        except ValueError:
            raise UnsupportedModelError(
                f"attribute {proto.name!r} of {where} has the unknown type {proto.type}"
            ) from None
        doc_string = proto.doc_string or None
        if proto.ref_attr_name:
            return ir.RefAttr(proto.name, proto.ref_attr_name, kind, doc_string=doc_string)
        return ir.Attr(
            proto.name, kind, self._attribute_value(proto, kind, scope, where), doc_string=doc_string
        )

    def _attribute_value(
        self, proto: onnx.AttributeProto, kind: ir.AttributeType, scope: _Scope | None, where: str
    ) -> Any:
        if kind == ir.AttributeType.UNDEFINED:
            return None
        field = ATTRIBUTE_FIELDS[kind]
        held = getattr(proto, field)
        inside = f"{proto.name!r} of {where}"
        if field in PLAIN:
            return tuple(held) if field in REPEATED else held
        if field in REPEATED:
            return tuple(self._attribute_item(item, scope, inside) for item in held)
        return self._attribute_item(held, scope, inside)

    def _attribute_item(self, item: Any, scope: _Scope | None, where: str) -> Any:
        match item:
            case onnx.TensorProto():
                return self._tensors.tensor(item, where)
            case onnx.GraphProto():
                return self.graph(item, scope, f"subgraph {where}")
            case onnx.SparseTensorProto():
                return self._tensors.sparse_tensor(item, where)
            case onnx.TypeProto():
                return ir.TypeAndShape(*decode_type(item, where))
            case _:
                return _text(item)


def _output(name: str, scope: _Scope) -> ir.Value:
    if name not in scope:
        said = "is not defined in" if scope.outer is None else "is not made by a node of"
        raise InvalidModelError(f"output {name!r} {said} {scope.where}")
    return scope[name]


def _label(node: onnx.NodeProto) -> str:
    made = node.name or ", ".join(node.output)
    return f"node {made!r} ({node.op_type})"


def _opsets(protos: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Domain → version; the default domain, which has two names, goes by the empty one."""
    check_text(*(p.domain for p in protos))
    return {"" if p.domain == "ai.onnx" else p.domain: p.version for p in protos}


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _guess_type(proto: onnx.AttributeProto) -> ir.AttributeType:
    """The type of an attribute of a model from before the type was a field, by the field that is set."""
    present = {field.name for field, _ in proto.ListFields()}
    kinds = (kind for kind, field in ATTRIBUTE_FIELDS.items() if field in present)
    return next(kinds, ir.AttributeType.UNDEFINED)
