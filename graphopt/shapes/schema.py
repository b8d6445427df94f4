"""Shapes of operators without a rule of their own: the C++ inference of their schema, one node at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from graphopt import graph as g
from graphopt.shapes.rules import UNKNOWN, At, Fact

if TYPE_CHECKING:
    from graphopt.shapes.symbols import Dim


@cache
def schema(op_type: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    """The schema in force, or ``None`` for an operator that onnx does not define."""
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


def undefined_operators(model: ir.Model) -> list[str]:
    """The operators of the standard domain that onnx does not define at the opset in force, in words."""
    found: dict[str, None] = {}
    for graph in g.graphs(model):
        opset = g.opset(model, graph)
        for node in graph:
            standard = node.domain in g.DEFAULT_DOMAINS and node.op_identifier() not in model.functions
            if standard and schema(node.op_type, opset, "") is None:
                found[f"'{node.op_type}' (opset {opset})"] = None
    return list(found)


def by_schema(at: At) -> Sequence[Fact] | None:
    """The facts of all outputs; ``None`` when no schema describes the operator."""
    node = at.node
    domain = "" if node.domain in g.DEFAULT_DOMAINS else node.domain
    version = at.opset if domain == "" else int(at.shapes.model.opset_imports.get(domain, 1))
    described = schema(node.op_type, version, domain)
    if described is None:
        return None
    if any(found.is_ref() for found in node.attributes.values()) or g.has_subgraph(node):
        return [UNKNOWN] * len(node.outputs)
    return _ask(at, described, {"": at.opset, domain: version})


def _ask(at: At, described: onnx.defs.OpSchema, opsets: dict[str, int]) -> Sequence[Fact]:
    names = [f"i{i}" if value is not None else "" for i, value in enumerate(at.node.inputs)]
    outputs = [f"o{i}" if value.name else "" for i, value in enumerate(at.node.outputs)]
    proto = onnx.NodeProto(op_type=at.node.op_type, domain=at.node.domain, input=names, output=outputs)
    proto.attribute.extend(ir.to_proto(found) for found in at.node.attributes.values())
    types = {name: _type_proto(fact) for name, fact in zip(names, at.inputs, strict=True) if name}
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    try:
        found = onnx.shape_inference.infer_node_outputs(
            described, proto, types, _data(at, names), opset_imports=imports
        )
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return [UNKNOWN] * len(outputs)
    return [_fact(at, found.get(name)) for name in outputs]


def _data(at: At, names: Sequence[str]) -> dict[str, onnx.TensorProto]:
    """Small constants: the C++ inference reads scales, pads, repeats and the like from them."""
    data = {}
    for name, value, fact in zip(names, at.node.inputs, at.inputs, strict=True):
        tensor = g.constant(value)
        if tensor is not None and tensor.size <= 128 and tensor.dtype is not ir.DataType.STRING:
            data[name] = ir.to_proto(tensor)
        elif fact.vector is not None and fact.dtype is not None:
            known = [v for v in fact.vector if isinstance(v, int)]
            if len(known) == len(fact.vector):
                size = [len(known)] if fact.dims else []
                data[name] = onnx.helper.make_tensor(name, fact.dtype.value, size, known)
    return data


def _type_proto(fact: Fact) -> onnx.TypeProto:
    if fact.dtype is None:
        return onnx.TypeProto()
    return onnx.helper.make_tensor_type_proto(fact.dtype.value, fact.dims)


def _fact(at: At, found: onnx.TypeProto | None) -> Fact:
    if found is None or not found.HasField("tensor_type"):
        return UNKNOWN
    tensor = found.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Fact(dtype)
    return Fact(dtype, tuple(_dim(at, dim) for dim in tensor.shape.dim))


def _dim(at: At, dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return dim.dim_value
    return dim.dim_param or at.symbols.fresh()
