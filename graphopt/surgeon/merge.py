"""Three-way merge of ONNX protobufs: puts an edit that was made on a lossy copy onto the lossless original.

Given the original P, its lossy conversion B, and the edited conversion E, each field becomes P's where E
equals B, and E's where it does not. Repeated messages are merged element by element, matched by name, and
elements that the conversion alone lost come back.
"""

from __future__ import annotations

from collections.abc import Hashable, MutableSequence
from typing import Any, TypeVar

import onnx
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def merge(original: M, converted: M, edited: M) -> M:
    """Merge one message.

    Args:
        original: the message as it was.
        converted: the original after the lossy conversion alone.
        edited: the original after the conversion and an edit.
    """
    merged: M = type(edited)()
    for field in edited.DESCRIPTOR.fields:
        _merge_field(merged, field.name, original, converted, edited)
    if isinstance(merged, onnx.GraphProto):
        _drop_stale(merged)
    return merged


def _merge_field(merged: Message, name: str, original: Message, converted: Message, edited: Message) -> None:
    p, b, e = (getattr(message, name) for message in (original, converted, edited))
    same = b == e
    if isinstance(e, MutableSequence):
        getattr(merged, name).extend(p if same else _merge_elements(list(p), list(b), list(e)))
    elif same:
        _assign(merged, name, original)
    elif isinstance(e, onnx.GraphProto):
        getattr(merged, name).CopyFrom(merge(p, b, e))
    else:
        _assign(merged, name, edited)


def _assign(merged: Message, name: str, source: Message) -> None:
    if not source.HasField(name):
        return
    value = getattr(source, name)
    if isinstance(value, Message):
        getattr(merged, name).CopyFrom(value)
    else:
        setattr(merged, name, value)


def _merge_elements(original: list[Any], converted: list[Any], edited: list[Any]) -> list[Any]:
    if not isinstance(edited[0] if edited else converted[0], Message):
        return edited
    before, after = _table(original), _table(converted)
    merged = [_merge_element(element, before, after) for element in edited]
    return merged + [element for element in original if not any(key in after for key in _keys(element))]


def _merge_element(edited: Any, originals: dict[Hashable, Any], converted: dict[Hashable, Any]) -> Any:
    for key in _keys(edited):
        if key in originals and key in converted:
            if edited == converted[key]:
                return originals[key]
            return merge(originals[key], converted[key], edited)
    return edited


def _table(elements: list[Any]) -> dict[Hashable, Any]:
    return {key: element for element in elements for key in _keys(element)}


def _keys(element: Any) -> list[Hashable]:
    """What an element of a repeated field is known by, the surest first."""
    if isinstance(element, onnx.NodeProto):
        kind = (element.domain, element.op_type)
        return [(*kind, tuple(element.output)), *([(*kind, element.name)] if element.name else [])]
    if isinstance(element, onnx.FunctionProto):
        return [(element.domain, element.name, element.overload)]
    if isinstance(element, onnx.SparseTensorProto):
        return [element.values.name]
    fields = ("name", "key", "tensor_name", "domain")
    return [getattr(element, field) for field in fields if field in element.DESCRIPTOR.fields_by_name][:1]


def _drop_stale(graph: onnx.GraphProto) -> None:
    """Drop what is said of values that the edit removed."""
    values = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    values |= {tensor.values.name for tensor in graph.sparse_initializer}
    values |= {name for node in graph.node for name in node.output}
    for protos, field in (graph.value_info, "name"), (graph.quantization_annotation, "tensor_name"):
        kept = [proto for proto in protos if getattr(proto, field) in values or "::" in getattr(proto, field)]
        del protos[:]
        protos.extend(kept)
