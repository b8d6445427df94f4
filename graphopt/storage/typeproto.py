"""TypeProto ↔ onnx-ir's type and shape; what onnx-ir cannot express is kept as its protobuf."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from graphopt.errors import UnsupportedModelError
from graphopt.storage.validity import check_text


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


def decode_type(proto: onnx.TypeProto, where: str) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
    """The type and the shape of its tensors; types that onnx-ir cannot hold become OpaqueType.

    Raises:
        UnsupportedModelError: an element type that the installed onnx does not know.
    """
    kind = proto.WhichOneof("value")
    check_text(proto.denotation)
    if kind is None and not proto.denotation:
        return None, None
    try:
        if kind == "tensor_type" and proto.tensor_type.HasField("elem_type"):
            tensor = proto.tensor_type
            type_ = ir.TensorType(ir.DataType(tensor.elem_type), denotation=proto.denotation or None)
            return type_, _decode_shape(tensor.shape) if tensor.HasField("shape") else None
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


def _decode_shape(proto: onnx.TensorShapeProto) -> ir.Shape:
    dims: list[int | ir.SymbolicDim] = []
    denotations: list[str | None] = []
    for dim in proto.dim:
        kind = dim.WhichOneof("value")
        symbol = dim.dim_param if kind == "dim_param" else None
        check_text(symbol or "", dim.denotation)
        dims.append(dim.dim_value if kind == "dim_value" else ir.SymbolicDim(symbol))
        denotations.append(dim.denotation or None)
    return ir.Shape(dims, denotations=denotations, frozen=True)


def encode_type(proto: onnx.TypeProto, type_: ir.TypeProtocol | None, shape: ir.Shape | None) -> None:
    """Write a type with the shape of its tensors."""
    proto.SetInParent()
    if isinstance(type_, OpaqueType):
        proto.CopyFrom(type_.proto)
        return
    if isinstance(type_, ir.TensorType):
        if type_.denotation:
            proto.denotation = type_.denotation
        proto.tensor_type.elem_type = type_.dtype.value
        if shape is not None:
            _encode_shape(proto.tensor_type.shape, shape)
        return
    if type_ is not None:
        ir.serde.serialize_type_into(proto, type_)
        if shape is not None:
            ir.serde.serialize_shape_into(proto, shape)


def _encode_shape(proto: onnx.TensorShapeProto, shape: ir.Shape) -> None:
    proto.SetInParent()
    for index, dim in enumerate(shape):
        dim_proto = proto.dim.add()
        if isinstance(dim, int):
            dim_proto.dim_value = dim
        elif dim.value is not None:
            dim_proto.dim_param = dim.value
        if denotation := shape.get_denotation(index):
            dim_proto.denotation = denotation
