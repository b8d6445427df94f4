"""ONNX protobuf → onnx-ir, without loss.

onnx-ir's own reader drops sparse initializers, refuses map types and sparse attributes, writes the type of an
output over that of the input that it returns, and accepts models in which a value is not defined. This one keeps
what the protobuf says, and refuses a model that no runtime could run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.errors import InvalidModelError, UnsupportedModelError
from graphopt.weights import DataFiles, LeafTensor, MappedFile, MappedTensor, MemoryFile, SparseTensor
from graphopt.weights import claimed_bytes

DECLARED = "graphopt.value_info"
"""Key in a value's meta: the model has value_info for it although it is an initializer, input or output."""
OUTPUT_INFO = "graphopt.output"
"""Key in a value's meta: what each output of the graph says of a value that is described elsewhere, a list."""
LEFTOVERS = "graphopt.leftovers"
"""Key in a graph's meta: a GraphProto of the annotations that belong to no value of the graph."""
QUANTIZATION = "quant_parameter_tensor_names"
"""onnx-ir's key in a value's meta for its quantization_annotation."""

_Kind = onnx.AttributeProto
_FIELDS_OF_TYPE = {  # where the values of a tensor may be when not in raw_data, and elements per entry
    "float_data": 4,
    "int32_data": 4,
    "int64_data": 8,
    "double_data": 8,
    "uint64_data": 8,
}


class OpaqueType(ir.TypeProtocol):
    """A type that onnx-ir cannot express (maps, opaque types), kept as its protobuf."""

    def __init__(self, proto: onnx.TypeProto) -> None:
        self.proto = proto
        self.denotation: str | None = proto.denotation or None
        self.dtype = ir.DataType.UNDEFINED
        self.elem_type = ir.DataType.UNDEFINED

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpaqueType) and self.proto == other.proto

    def __hash__(self) -> int:
        return hash(self.proto.SerializeToString(deterministic=True))

    def __repr__(self) -> str:
        return f"OpaqueType({self.proto.WhichOneof('value')})"


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
    _check_versions(proto)
    return _Decoder(source, self_location, data_files).model(proto)


def _check_versions(proto: onnx.ModelProto) -> None:
    if proto.ir_version < 1:
        raise InvalidModelError("not an ONNX model: it states no IR version")
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedModelError(
            f"IR version {proto.ir_version} is newer than the installed onnx ({onnx.IR_VERSION}); upgrade onnx"
        )
    if not proto.HasField("graph"):
        raise InvalidModelError("not an ONNX model: it has no graph")
    if proto.training_info:
        raise UnsupportedModelError(
            "the model carries training_info, which refers to the graph by name; remove it first"
        )
    if not proto.opset_import and proto.ir_version >= 3:
        raise InvalidModelError("the model imports no opset; state one in opset_import")
    latest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.version < 1:
            raise InvalidModelError(f"opset {opset.version} of domain {opset.domain!r} does not exist")
        if opset.domain in ("", "ai.onnx") and opset.version > latest:
            raise UnsupportedModelError(
                f"opset {opset.version} is newer than the installed onnx ({latest}); upgrade onnx"
            )


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
        self._source = source
        self._self_location = self_location
        self._data_files = data_files
        self._configurations: dict[str, ir.ModelConfiguration] = {}
        self._unsorted: str | None = None  # a value that is read before its node comes

    def model(self, proto: onnx.ModelProto) -> ir.Model:
        configurations = [ir.serde.deserialize_model_configuration(c) for c in proto.configuration]
        self._configurations = {c.name: c for c in configurations}
        graph = self.graph(proto.graph, None, "the graph")
        self._sort(graph, "the graph")
        graph.opset_imports.update(_opsets(proto.opset_import))
        functions = [self.function(function) for function in proto.functions]
        _refuse_recursion(functions)
        return ir.Model(
            graph,
            ir_version=proto.ir_version,
            producer_name=proto.producer_name or None,
            producer_version=proto.producer_version or None,
            domain=proto.domain or None,
            model_version=proto.model_version or None,
            doc_string=proto.doc_string or None,
            functions=functions,
            metadata_props=_props(proto.metadata_props),
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
        where = f"function {proto.name!r}"
        scope = _Scope(None, where)
        inputs = [scope.define(name, ir.Value(name=name), made=True) for name in proto.input]
        infos = {info.name: info for info in proto.value_info}
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
            metadata_props=_props(proto.metadata_props),
        )
        self._sort(graph, where)
        attributes = [self.attribute(attribute, None, where) for attribute in proto.attribute_proto]
        attributes += [ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in proto.attribute]
        return ir.Function(proto.domain, proto.name, proto.overload, graph=graph, attributes=attributes)

    def graph(self, proto: onnx.GraphProto, outer: _Scope | None, where: str) -> ir.Graph:
        scope = _Scope(outer, where)
        inputs = [scope.define(i.name, self._value(i), made=True) for i in proto.input]
        infos = {info.name: info for info in proto.value_info}
        initializers = self._initializers(proto, scope, infos)
        nodes = self._nodes(proto.node, scope, infos)
        outputs = self._outputs(proto.output, scope, infos)
        for value in inputs:
            if value.name in infos:
                value.meta[DECLARED] = True
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=nodes,
            initializers=initializers,
            doc_string=proto.doc_string or None,
            name=proto.name or None,
            metadata_props=_props(proto.metadata_props),
        )
        self._annotate(proto, graph, scope)
        return graph

    def _annotate(self, proto: onnx.GraphProto, graph: ir.Graph, scope: _Scope) -> None:
        """Attach quantization annotations to their values; keep what names none, such as a function's value."""
        leftovers = onnx.GraphProto()
        for annotation in proto.quantization_annotation:
            if annotation.tensor_name in scope:
                names = _props(annotation.quant_parameter_tensor_names) or {}
                scope[annotation.tensor_name].meta[QUANTIZATION] = names
            else:
                leftovers.quantization_annotation.append(annotation)
        leftovers.value_info.extend(i for i in proto.value_info if i.name not in scope and "::" in i.name)
        if leftovers.ByteSize():
            graph.meta[LEFTOVERS] = leftovers

    def _initializers(
        self, proto: onnx.GraphProto, scope: _Scope, infos: dict[str, onnx.ValueInfoProto]
    ) -> list[ir.Value]:
        tensors: Iterable[ir.TensorProtocol] = [self.tensor(t, scope.where) for t in proto.initializer]
        sparse = [self.sparse_tensor(s, scope.where) for s in proto.sparse_initializer]
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
                    value.meta[DECLARED] = True
                scope.define(name, value, made=True)
            found[name] = scope[name]
        return list(found.values())

    def _outputs(
        self,
        protos: Sequence[onnx.ValueInfoProto],
        scope: _Scope,
        infos: dict[str, onnx.ValueInfoProto],
    ) -> list[ir.Value]:
        """Resolve a graph's outputs; the same value may be several, and inputs and initializers may be outputs."""
        outputs = [_output(info.name, scope) for info in protos]
        repeated = {value for value, count in Counter(outputs).items() if count > 1}
        described: set[ir.Value] = set()
        for value, info in zip(outputs, protos, strict=True):
            made = value.producer() is not None
            if made and info.name in infos:
                value.meta[DECLARED] = True
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
        value = ir.Value(name=info.name)
        self._fill(value, info)
        return value

    def _fill(self, value: ir.Value, info: onnx.ValueInfoProto) -> None:
        value.type, value.shape = decode_type(info.type, f"value {info.name!r}")
        if info.doc_string:
            value.doc_string = info.doc_string
        if info.metadata_props:
            value.metadata_props.update(_props(info.metadata_props) or {})

    def _nodes(
        self, protos: Sequence[onnx.NodeProto], scope: _Scope, infos: dict[str, onnx.ValueInfoProto]
    ) -> list[ir.Node]:
        for proto in protos:
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
            metadata_props=_props(proto.metadata_props),
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
        try:
            kind = ir.AttributeType(proto.type or _guess_type(proto))
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
        kinds = ir.AttributeType
        inside = f"{proto.name!r} of {where}"
        match kind:
            case kinds.INT:
                return proto.i
            case kinds.INTS:
                return tuple(proto.ints)
            case kinds.FLOAT:
                return proto.f
            case kinds.FLOATS:
                return tuple(proto.floats)
            case kinds.STRING:
                return _text(proto.s)
            case kinds.STRINGS:
                return tuple(_text(s) for s in proto.strings)
            case kinds.TENSOR:
                return self.tensor(proto.t, inside)
            case kinds.TENSORS:
                return tuple(self.tensor(t, inside) for t in proto.tensors)
            case kinds.GRAPH:
                return self.graph(proto.g, scope, f"subgraph {inside}")
            case kinds.GRAPHS:
                return tuple(self.graph(g, scope, f"subgraph {inside}") for g in proto.graphs)
            case kinds.SPARSE_TENSOR:
                return self.sparse_tensor(proto.sparse_tensor, inside)
            case kinds.SPARSE_TENSORS:
                return tuple(self.sparse_tensor(s, inside) for s in proto.sparse_tensors)
            case kinds.TYPE_PROTO:
                return ir.TypeAndShape(*decode_type(proto.tp, inside))
            case kinds.TYPE_PROTOS:
                return tuple(ir.TypeAndShape(*decode_type(tp, inside)) for tp in proto.type_protos)
            case _:
                return None

    def sparse_tensor(self, proto: onnx.SparseTensorProto, where: str) -> SparseTensor:
        values, indices = self.tensor(proto.values, where), self.tensor(proto.indices, where)
        return SparseTensor(values, indices, tuple(proto.dims))

    def tensor(self, proto: onnx.TensorProto, where: str) -> ir.TensorProtocol:
        if proto.HasField("segment"):
            raise UnsupportedModelError(f"tensor {proto.name!r} of {where} is stored in segments")
        if proto.data_type == onnx.TensorProto.STRING:
            return _string_tensor(proto)
        expected = claimed_bytes(proto)
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            return self._mapped_tensor(proto, expected)
        held = _held_bytes(proto)
        if held != expected:
            raise InvalidModelError(
                f"tensor {proto.name!r} of {where} claims {expected:,} bytes but holds {held:,}"
            )
        return ir.serde.TensorProtoTensor(proto)

    def _mapped_tensor(self, proto: onnx.TensorProto, expected: int) -> LeafTensor:
        entries = {entry.key: entry.value for entry in proto.external_data}
        location = entries.get("location", "")
        offset, length = _range(entries, proto.name, expected)
        inside = location == self._self_location
        file = self._source if inside else self._data_files.open(location, proto.name)
        if length != expected or offset + length > file.size:
            raise InvalidModelError(
                f"tensor {proto.name!r} claims {expected:,} bytes but has {length:,} at offset {offset:,} of "
                f"{'the model' if inside else repr(location)} ({file.size:,} bytes)"
            )
        shape = ir.Shape(proto.dims, frozen=True)
        tensor = MappedTensor(file, offset, length, ir.DataType(proto.data_type), shape, proto.name)
        tensor.doc_string = proto.doc_string or None
        tensor.metadata_props = _props(proto.metadata_props) or {}
        return tensor


def _refuse_recursion(functions: Sequence[ir.Function]) -> None:
    """Take away functions that call no other, again and again; what stays calls itself."""
    known = {function.identifier() for function in functions}
    calls = {f.identifier(): known & {n.op_identifier() for n in f.all_nodes()} for f in functions}
    while leaves := {caller for caller, callees in calls.items() if not callees & calls.keys()}:
        calls = {caller: callees for caller, callees in calls.items() if caller not in leaves}
    if calls:
        raise InvalidModelError(f"function {next(iter(calls))[1]!r} calls itself, directly or through others")


def decode_type(proto: onnx.TypeProto, where: str) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
    """The type and the shape of its tensors; types that onnx-ir cannot hold become OpaqueType.

    Raises:
        UnsupportedModelError: an element type that the installed onnx does not know.
    """
    kind = proto.WhichOneof("value")
    if kind is None and not proto.denotation:
        return None, None
    try:
        if kind == "tensor_type" and proto.tensor_type.HasField("elem_type"):
            tensor = proto.tensor_type
            type_ = ir.TensorType(ir.DataType(tensor.elem_type), denotation=proto.denotation or None)
            return type_, _shape(tensor.shape) if tensor.HasField("shape") else None
        if _expressible(proto):
            serde = ir.serde
            return serde.deserialize_type_proto_for_type(proto), serde.deserialize_type_proto_for_shape(proto)
    except (ValueError, ir.serde.SerdeError):
        raise UnsupportedModelError(f"{where} has a type that the installed onnx-ir does not know") from None
    return OpaqueType(proto), None


def _expressible(proto: onnx.TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return _expressible(getattr(proto, kind).elem_type)
    return kind in ("tensor_type", "sparse_tensor_type") and getattr(proto, kind).HasField("elem_type")


def _shape(proto: onnx.TensorShapeProto) -> ir.Shape:
    dims: list[int | ir.SymbolicDim] = []
    denotations: list[str | None] = []
    for dim in proto.dim:
        kind = dim.WhichOneof("value")
        symbol = dim.dim_param if kind == "dim_param" else None
        dims.append(dim.dim_value if kind == "dim_value" else ir.SymbolicDim(symbol))
        denotations.append(dim.denotation or None)
    return ir.Shape(dims, denotations=denotations, frozen=True)


def _output(name: str, scope: _Scope) -> ir.Value:
    if name not in scope:
        raise InvalidModelError(f"output {name!r} is not defined in {scope.where}")
    return scope[name]


def _label(node: onnx.NodeProto) -> str:
    made = node.name or ", ".join(node.output)
    return f"node {made!r} ({node.op_type})"


def _opsets(protos: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Domain → version; the default domain, which has two names, goes by the empty one."""
    return {"" if p.domain == "ai.onnx" else p.domain: p.version for p in protos}


def _props(entries: Sequence[onnx.StringStringEntryProto]) -> dict[str, str] | None:
    return {entry.key: entry.value for entry in entries} if entries else None


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _guess_type(proto: onnx.AttributeProto) -> int:
    """The type of an attribute of a model from before the field existed, by the field that is set."""
    fields = {"f": 1, "i": 2, "s": 3, "t": 4, "g": 5}
    lists = {"floats": 6, "ints": 7, "strings": 8, "tensors": 9, "graphs": 10}
    for name, kind in fields.items():
        if proto.HasField(name):  # type: ignore[arg-type]
            return kind
    return next((kind for name, kind in lists.items() if len(getattr(proto, name))), 0)


def _string_tensor(proto: onnx.TensorProto) -> ir.StringTensor:
    shape = ir.Shape(proto.dims)
    tensor = ir.StringTensor(
        proto.string_data,
        shape=shape,
        name=proto.name,
        doc_string=proto.doc_string or None,
        metadata_props=_props(proto.metadata_props),
    )
    if tensor.size != len(proto.string_data):
        raise InvalidModelError(
            f"tensor {proto.name!r} claims {tensor.size:,} strings but holds {len(proto.string_data):,}"
        )
    return tensor


def _held_bytes(proto: onnx.TensorProto) -> int:
    """The bytes that the tensor's data takes in its own type, whichever field holds it."""
    if proto.HasField("raw_data"):
        return len(proto.raw_data)
    dtype = ir.DataType(proto.data_type)
    for field, width in _FIELDS_OF_TYPE.items():
        count = len(getattr(proto, field))
        if count and field == "int32_data":
            return count * min(4, -(-dtype.bitwidth // 8)) if dtype.bitwidth != 6 else -(-count * 6 // 8)
        if count and field == "uint64_data":
            return count * dtype.bitwidth // 8
        if count:
            return count * width
    return 0


def _range(entries: dict[str, str], name: str, expected: int) -> tuple[int, int]:
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except ValueError:
        raise InvalidModelError(
            f"tensor {name!r} has an external offset or length that is no number"
        ) from None
    if offset < 0 or length < 0:
        raise InvalidModelError(f"tensor {name!r} has a negative external offset or length")
    return offset, length
