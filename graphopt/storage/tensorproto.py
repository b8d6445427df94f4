"""TensorProto → tensor: checked against the size that it claims; large data stays in its file."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from graphopt.errors import InvalidModelError, UnsupportedModelError
from graphopt.storage.validity import check_text
from graphopt.storage.weights import DataFiles, LeafTensor, MappedFile, MappedTensor, MemoryFile, SparseTensor

_FIELDS_OF_TYPE = {  # where the values of a tensor may be when not in raw_data, and elements per entry
    "float_data": 4,
    "int32_data": 4,
    "int64_data": 8,
    "double_data": 8,
    "uint64_data": 8,
}


class TensorReader:
    """Reads the tensors of one model.

    Args:
        source: the file that the model was cut from.
        self_location: the external location that stands for ``source``.
        data_files: opens the external data.
    """

    def __init__(self, source: MappedFile | MemoryFile, self_location: str, data_files: DataFiles) -> None:
        self._source = source
        self._self_location = self_location
        self._data_files = data_files

    def sparse_tensor(self, proto: onnx.SparseTensorProto, where: str) -> SparseTensor:
        """Read a sparse tensor, which ``where`` names for people."""
        values, indices = self.tensor(proto.values, where), self.tensor(proto.indices, where)
        return SparseTensor(values, indices, tuple(proto.dims))

    def tensor(self, proto: onnx.TensorProto, where: str) -> ir.TensorProtocol:
        """Read a tensor of ``where``.

        Raises:
            InvalidModelError: it has more or less data than its dims and type ask for, or none.
            UnsupportedModelError: it is stored in segments.
        """
        check_text(proto.name, proto.doc_string)
        if proto.HasField("segment"):
            raise UnsupportedModelError(f"tensor {proto.name!r} of {where} is stored in segments")
        if proto.data_type == onnx.TensorProto.STRING:
            return _string_tensor(proto)
        expected = _claimed_bytes(proto)
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            return self._mapped_tensor(proto, expected)
        held = _held_bytes(proto)
        if held != expected:
            raise InvalidModelError(
                f"tensor {proto.name!r} of {where} claims {expected:,} bytes but holds {held:,}"
            )
        return ir.serde.TensorProtoTensor(proto)

    def _mapped_tensor(self, proto: onnx.TensorProto, expected: int) -> LeafTensor:
        entries = props(proto.external_data)
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
        tensor = MappedTensor(file, offset, ir.DataType(proto.data_type), shape, proto.name)
        tensor.doc_string = proto.doc_string or None
        tensor.metadata_props = props(proto.metadata_props)
        return tensor


def props(entries: Iterable[onnx.StringStringEntryProto]) -> dict[str, str]:
    """Key-value entries as a dict."""
    found = {entry.key: entry.value for entry in entries}
    check_text(*found, *found.values())
    return found


def _claimed_bytes(proto: onnx.TensorProto) -> int:
    """The bytes that a tensor's dims and type ask for.

    Raises:
        InvalidModelError: a negative dim, or a type that ONNX does not know.
    """
    count = 1
    for dim in proto.dims:
        if dim < 0:
            raise InvalidModelError(f"tensor {proto.name!r} has the negative dim {dim}")
        count *= dim
    try:
        bits = ir.DataType(proto.data_type).bitwidth
    except (ValueError, TypeError):
        raise InvalidModelError(f"tensor {proto.name!r} has the unknown type {proto.data_type}") from None
    return -(-count * bits // 8)


def _string_tensor(proto: onnx.TensorProto) -> ir.StringTensor:
    shape = ir.Shape(proto.dims)
    tensor = ir.StringTensor(
        proto.string_data,
        shape=shape,
        name=proto.name,
        doc_string=proto.doc_string or None,
        metadata_props=props(proto.metadata_props),
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
