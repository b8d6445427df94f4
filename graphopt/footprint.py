"""How many bytes parts of a graph take in a file, counted without writing it."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import graph as g


def node_bytes(node: ir.Node) -> int:
    """The bytes of a node: each field has a tag and a length besides its content; tensors count as data."""
    texts = [text for text in (node.name, node.op_type, node.domain) if text]
    texts += ["" if value is None else value.name or "" for value in (*node.inputs, *node.outputs)]
    return 2 + sum(len(text.encode()) + 2 for text in texts) + sum(map(_attribute, node.attributes.values()))


def _attribute(found: ir.Attr) -> int:
    if found.type is ir.AttributeType.TENSOR and not found.is_ref():
        return 12 + len(found.name) + tensor_bytes(found.value) + header_bytes("", len(found.value.shape))
    return int(ir.serde.serialize_attribute(found).ByteSize()) + 2


def constant_bytes(value: ir.Value) -> int:
    """The bytes of a constant as an initializer; 0 for a value that is none."""
    tensor = g.constant(value)
    if tensor is None:
        return 0
    return tensor_bytes(tensor) + header_bytes(value.name or "", len(tensor.shape))


def header_bytes(name: str, rank: int) -> int:
    """The bytes that an initializer takes besides its data: tags, lengths, type, dims and name."""
    return 10 + 2 * rank + len(name.encode())


def tensor_bytes(tensor: ir.TensorProtocol) -> int:
    """The bytes of a tensor's data in the file."""
    if isinstance(tensor, ir.StringTensor):
        return sum(len(text) + 2 for text in tensor.string_data())
    return int(tensor.nbytes)
