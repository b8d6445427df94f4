"""onnx-ir → ONNX protobuf, the inverse of ``decode``: what was read and not changed is written as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.errors import InvalidModelError
from graphopt.storage.decode import ATTRIBUTE_FIELDS, DECLARED, LEFTOVERS, OUTPUT_INFO, QUANTIZATION
from graphopt.storage.typeproto import encode_type
from graphopt.storage.weights import SparseTensor
from graphopt.storage.wire import LARGE

Placing = Callable[[onnx.TensorProto, ir.TensorProtocol, bool], None]
"""Fills in the data of a large tensor: (proto, tensor, whether it is an initializer)."""


def encode_model(model: ir.Model, place: Placing) -> onnx.ModelProto:
    """Turn onnx-ir's model into a protobuf.

    Args:
        model: the model.
        place: called for each tensor of 4 KiB and more, which may leave its data out of the protobuf.
    """
    encoder = _Encoder(place)
    proto = onnx.ModelProto(ir_version=model.ir_version)
    _set(proto, model, "producer_name", "producer_version", "domain", "model_version", "doc_string")
    _opsets(proto.opset_import, model.opset_imports)
    _props(proto.metadata_props, model.metadata_props)
    for configuration in model.device_configurations:
        proto.configuration.append(ir.serde.serialize_model_configuration(configuration))
    encoder.graph(proto.graph, model.graph)
    for function in model.functions.values():
        encoder.function(proto.functions.add(), function)
    return proto


class _Encoder:
    def __init__(self, place: Placing) -> None:
        self._place = place

    def function(self, proto: onnx.FunctionProto, function: ir.Function) -> None:
        _set(proto, function, "name", "domain", "overload", "doc_string")
        _opsets(proto.opset_import, function.opset_imports)
        _props(proto.metadata_props, function.metadata_props)
        proto.input.extend(value.name or "" for value in function.inputs)
        proto.output.extend(value.name or "" for value in function.outputs)
        for attribute in function.attributes.values():
            if attribute.value is None:
                proto.attribute.append(attribute.name)
            else:
                self.attribute(proto.attribute_proto.add(), attribute)
        for value in function.inputs:
            _value_info(proto.value_info, value)
        for node in function:
            self.node(proto.node.add(), node)
            for value in node.outputs:
                _value_info(proto.value_info, value)

    def graph(self, proto: onnx.GraphProto, graph: ir.Graph) -> None:
        _set(proto, graph, "name", "doc_string")
        _props(proto.metadata_props, graph.metadata_props)
        inputs = set(graph.inputs)
        for value in graph.inputs:
            encode_value(proto.input.add(), value)
            _declared(proto, value)
        for value in graph.initializers.values():
            self._initializer(proto, value)
            if value not in inputs:
                _declared(proto, value)
        for node in graph:
            self.node(proto.node.add(), node)
            for value in node.outputs:
                if value.is_graph_output():
                    _declared(proto, value)
                else:
                    _value_info(proto.value_info, value)
                    _annotation(proto, value)
        _outputs(proto, graph)
        if LEFTOVERS in graph.meta:
            proto.MergeFrom(graph.meta[LEFTOVERS])

    def _initializer(self, proto: onnx.GraphProto, value: ir.Value) -> None:
        tensor = value.const_value
        if tensor is None:
            raise InvalidModelError(f"initializer {value.name!r} has no data")
        if isinstance(tensor, SparseTensor):
            sparse = proto.sparse_initializer.add()
            self.sparse_tensor(sparse, tensor)
            sparse.values.name = value.name or ""
        else:
            self.tensor(proto.initializer.add(), tensor, value.name, initializer=True)

    def node(self, proto: onnx.NodeProto, node: ir.Node) -> None:
        _set(proto, node, "name", "op_type", "domain", "overload", "doc_string")
        _props(proto.metadata_props, node.metadata_props)
        proto.input.extend("" if value is None else value.name or "" for value in node.inputs)
        proto.output.extend(value.name or "" for value in node.outputs)
        for attribute in node.attributes.values():
            self.attribute(proto.attribute.add(), attribute)
        for configuration in node.device_configurations:
            proto.device_configurations.append(ir.serde.serialize_node_device_configuration(configuration))

    def attribute(self, proto: onnx.AttributeProto, attribute: ir.Attr) -> None:
        _set(proto, attribute, "name", "doc_string")
        proto.type = attribute.type.value  # type: ignore[assignment]
        if attribute.is_ref():
            proto.ref_attr_name = attribute.ref_attr_name or ""
        elif attribute.value is not None:
            self._attribute_value(proto, attribute.type, attribute.value)

    def _attribute_value(self, proto: onnx.AttributeProto, kind: ir.AttributeType, value: Any) -> None:
        field = ATTRIBUTE_FIELDS[kind]
        held = getattr(proto, field)
        if kind in (ir.AttributeType.STRING, ir.AttributeType.STRINGS):
            value = _bytes(value) if field == "s" else [_bytes(item) for item in value]
        if hasattr(held, "SetInParent"):
            self._attribute_item(held, value)
        elif not hasattr(held, "extend"):
            setattr(proto, field, value)
        elif not hasattr(held, "add"):
            held.extend(value)
        else:
            for item in value:
                self._attribute_item(held.add(), item)

    def _attribute_item(self, proto: Any, value: Any) -> None:
        match proto:
            case onnx.TensorProto():
                self.tensor(proto, value)
            case onnx.GraphProto():
                self.graph(proto, value)
            case onnx.SparseTensorProto():
                self.sparse_tensor(proto, value)
            case onnx.TypeProto():
                encode_type(proto, value.type, value.shape)

    def sparse_tensor(self, proto: onnx.SparseTensorProto, tensor: SparseTensor) -> None:
        proto.dims.extend(tensor.shape.numpy())
        self.tensor(proto.values, tensor.values)
        self.tensor(proto.indices, tensor.indices)

    def tensor(
        self,
        proto: onnx.TensorProto,
        tensor: ir.TensorProtocol,
        name: str | None = None,
        initializer: bool = False,
    ) -> None:
        """Write a tensor; ``name`` is the value's, which counts more than the tensor's own."""
        if isinstance(tensor, ir.serde.TensorProtoTensor) and not _holds_much_raw_data(tensor):
            proto.CopyFrom(tensor.raw)
            if name is not None:
                proto.name = name
            return
        proto.SetInParent()
        proto.name = name if name is not None else tensor.name or ""
        if tensor.doc_string:
            proto.doc_string = tensor.doc_string
        proto.data_type = tensor.dtype.value
        proto.dims.extend(tensor.shape.numpy())
        _props(proto.metadata_props, tensor.metadata_props)
        if tensor.dtype == ir.DataType.STRING:
            proto.string_data.extend(_bytes(item) for item in tensor.numpy().flat)
        elif tensor.nbytes >= LARGE:
            self._place(proto, tensor, initializer)
        else:
            proto.raw_data = tensor.tobytes()


def _holds_much_raw_data(tensor: ir.serde.TensorProtoTensor) -> bool:
    return tensor.nbytes >= LARGE and tensor.raw.HasField("raw_data") if tensor.dtype.value != 8 else False


def encode_value(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    """Write a value's name, type, shape, doc string and metadata."""
    _set(proto, value, "name", "doc_string")
    _props(proto.metadata_props, value.metadata_props)
    if value.type is not None:
        encode_type(proto.type, value.type, value.shape)


def _outputs(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    """Write the outputs; one that is also an input says what the model said of it as an output."""
    seen: dict[ir.Value, int] = {}
    for value in graph.outputs:
        index = seen[value] = seen.get(value, -1) + 1
        infos = value.meta.get(OUTPUT_INFO, [])
        _encode_as_said(proto.output.add(), value, infos[index] if index < len(infos) else None)


def _encode_as_said(proto: onnx.ValueInfoProto, value: ir.Value, said: onnx.ValueInfoProto | None) -> None:
    """Write a value as the model described it in this place, unless a pass has changed its type since."""
    encode_value(proto, value)
    if said is not None and _same_elem_type(said.type, proto.type):
        proto.CopyFrom(said)
        proto.name = value.name or ""


def _same_elem_type(said: onnx.TypeProto, now: onnx.TypeProto) -> bool:
    """Whether a tensor's element type is still the one that was said."""
    kind = said.WhichOneof("value")
    return kind != "tensor_type" or said.tensor_type.elem_type == now.tensor_type.elem_type


def _declared(proto: onnx.GraphProto, value: ir.Value) -> None:
    """Write what the model said in value_info of an input, initializer or output, and its annotation."""
    if DECLARED in value.meta:
        _encode_as_said(proto.value_info.add(), value, value.meta[DECLARED])
    _annotation(proto, value)


def _annotation(proto: onnx.GraphProto, value: ir.Value) -> None:
    if names := value.meta.get(QUANTIZATION):
        annotation = proto.quantization_annotation.add(tensor_name=value.name or "")
        _props(annotation.quant_parameter_tensor_names, names)


def _value_info(protos: Any, value: ir.Value) -> None:
    if value.name and (value.type is not None or value.doc_string or value.metadata_props):
        encode_value(protos.add(), value)


def _set(proto: Any, source: Any, *fields: str) -> None:
    """Copy the fields that are not empty."""
    for field in fields:
        if value := getattr(source, field):
            setattr(proto, field, value)


def _opsets(protos: Any, opsets: Mapping[str, int]) -> None:
    for domain, version in opsets.items():
        protos.add(domain=domain or None, version=version)


def _props(protos: Any, props: Mapping[str, str]) -> None:
    for key, value in props.items():
        protos.add(key=key, value=value)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8")
