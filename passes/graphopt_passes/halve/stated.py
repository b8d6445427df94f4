"""Operators whose result has the type that an attribute states: Cast, ConstantOfShape, random numbers, …"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import graph as g

# Attribute, and what holds without it: a type, or None for that of the first input.
_STATED: dict[str, tuple[str, ir.DataType | None]] = {
    "Cast": ("to", None),
    "EyeLike": ("dtype", None),
    "RandomNormal": ("dtype", ir.DataType.FLOAT),
    "RandomUniform": ("dtype", ir.DataType.FLOAT),
    "RandomNormalLike": ("dtype", None),
    "RandomUniformLike": ("dtype", None),
    "Bernoulli": ("dtype", None),
    "ConstantOfShape": ("value", ir.DataType.FLOAT),
    "SequenceEmpty": ("dtype", ir.DataType.FLOAT),
    "HannWindow": ("output_datatype", ir.DataType.FLOAT),
    "HammingWindow": ("output_datatype", ir.DataType.FLOAT),
    "BlackmanWindow": ("output_datatype", ir.DataType.FLOAT),
    "MelWeightMatrix": ("output_datatype", ir.DataType.FLOAT),
}


def is_stated(node: ir.Node) -> bool:
    """Whether an attribute of the node states, or could state, the type of its result."""
    return g.is_op(node, *_STATED)


def stated(node: ir.Node, first: str) -> str:
    """The type of the result as text, ``first`` being that of the first input; empty if a caller says it."""
    name, default = _STATED[node.op_type]
    found = node.attributes.get(name)
    if found is not None and found.is_ref():
        return ""
    dtype = default if found is None else _dtype(found)
    if dtype is None:
        return first
    return f"seq(tensor({_text(dtype)}))" if node.op_type == "SequenceEmpty" else f"tensor({_text(dtype)})"


def state(node: ir.Node, dtype: ir.DataType) -> None:
    """Let the result, which is of 32-bit floats, have another type."""
    name = _STATED[node.op_type][0]
    found = node.attributes.get(name)
    if name != "value":
        node.attributes[name] = ir.AttrInt64(name, int(dtype))
        return
    data = np.zeros(1, np.float32) if found is None else found.as_tensor().numpy()
    node.attributes[name] = ir.AttrTensor(name, ir.Tensor(data.astype(dtype.numpy())))


def _dtype(found: ir.Attr) -> ir.DataType:
    return found.as_tensor().dtype if found.type is ir.AttributeType.TENSOR else ir.DataType(found.as_int())


def _text(dtype: ir.DataType) -> str:
    return dtype.name.lower()
