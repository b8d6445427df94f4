"""A canonical form of a model: two protobufs that mean the same have the same one."""

from __future__ import annotations

from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor

# Sets and maps, which protobuf stores as lists.
_UNORDERED = {
    "metadata_props": "key",
    "quant_parameter_tensor_names": "key",
    "opset_import": "domain",
    "value_info": "name",
    "quantization_annotation": "tensor_name",
    "external_data": "key",
}
_DEFAULT_MATTERS = {"dim_value", "dim_param", "elem_type"}  # members of a oneof or a type that is stated


def canonical(message: Any) -> Any:
    """A message as nested dicts, without fields that hold their default and without the order of sets.

    The default domain goes by its short name.
    """
    if isinstance(message, onnx.NodeProto):
        message = _trimmed(message)
    result = {}
    for field, value in message.ListFields():
        repeated = isinstance(value, str | bytes | int | float) is False and not hasattr(value, "ListFields")
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            plain = list(value) if repeated else value
            if field.name in ("f", "floats", "float_data", "double_data"):
                plain = repr(plain)  # NaN is not equal to itself
            if plain or field.name in _DEFAULT_MATTERS:
                result[field.name] = "" if field.name == "domain" and plain == "ai.onnx" else plain
        elif repeated:
            items = [canonical(item) for item in value]
            key = _UNORDERED.get(field.name)
            result[field.name] = sorted(items, key=lambda item: item.get(key, "")) if key else items
        else:
            result[field.name] = canonical(value)
    if result.get("domain") == "":
        del result["domain"]
    return result


def _trimmed(node: onnx.NodeProto) -> onnx.NodeProto:
    """Without the empty names at the end of its outputs, which say nothing."""
    trimmed = onnx.NodeProto()
    trimmed.CopyFrom(node)
    while trimmed.output and not trimmed.output[-1]:
        trimmed.output.pop()
    return trimmed
