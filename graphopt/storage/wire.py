"""The protobuf wire format of ONNX: cuts large ``raw_data`` out of a model file and splices it back in.

A protobuf message is a list of fields, each a tag (field number and wire type) and a payload; a nested
message is a payload with its length in front. So a model can be parsed without its weights once their
payloads are left out and the lengths around them recomputed, and written without ever being built in
memory.
Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from mmap import mmap

from graphopt.errors import InvalidModelError

LARGE = 4096
"""``raw_data`` of this many bytes and more stays in its file; onnx shape inference needs the smaller ones."""

MAX_DEPTH = 100
"""The nesting that protobuf's own parser accepts."""

# Nested messages on the way to a tensor, by message and field number (onnx.proto).
_NESTED: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_RAW_DATA = 9
_EXTERNAL_DATA = 13
_EXTERNAL = b"\x70\x01"  # TensorProto.data_location = EXTERNAL
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Buffer = bytes | mmap


@dataclass(frozen=True)
class Hole:
    """Where a payload that is not in memory belongs: ``length`` bytes, known to the caller by ``index``."""

    index: int
    length: int


Piece = bytes | Hole


def varint(number: int) -> bytes:
    """Encode a non-negative number, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    number = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise InvalidModelError("not an ONNX model, or a truncated one: a protobuf number is cut off")


def _fields(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield each field of a message: number, wire type, start of its tag, start and end of its payload."""
    while at < end:
        start = at
        tag = data[at]
        at += 1
        if tag > 0x7F:
            tag, at = _read_varint(data, start, end)
        wire_type = tag & 7
        stop = at
        if wire_type == _BYTES:
            length, at = _read_varint(data, at, end)
            stop = at + length
        elif wire_type == _VARINT:
            stop = _read_varint(data, at, end)[1]
        elif wire_type in (_FIXED64, _FIXED32):
            stop = at + (8 if wire_type == _FIXED64 else 4)
        else:
            raise InvalidModelError(f"not an ONNX model: unknown protobuf wire type {wire_type}")
        if stop > end:
            raise InvalidModelError(
                f"not an ONNX model, or a truncated one: a field ends at byte {stop} of {end}"
            )
        yield tag >> 3, wire_type, start, at, stop
        at = stop


@dataclass(frozen=True)
class _Rewriter:
    """Copies a message but for some ``raw_data`` fields, which ``replace`` turns into other pieces."""

    data: Buffer
    wanted: Callable[[int, int], bool]  # (start, end) of a payload: may it hold a field to replace?
    replace: Callable[[int, int], Sequence[Piece]]

    def message(self, kind: str, at: int, end: int, depth: int = 0) -> list[Piece]:
        if depth > MAX_DEPTH:
            raise InvalidModelError(f"not an ONNX model: messages are nested more than {MAX_DEPTH} deep")
        nested = _NESTED[kind]
        pieces: list[Piece] = []
        copied = at
        for number, wire_type, start, payload, stop in _fields(self.data, at, end):
            if wire_type != _BYTES or not self.wanted(payload, stop):
                continue
            if kind == "Tensor" and number == _RAW_DATA:
                inner = self.replace(payload, stop)
            elif number in nested:
                body = self.message(nested[number], payload, stop, depth + 1)
                inner = [varint(number << 3 | _BYTES) + varint(size(body)), *body]
            else:
                continue
            pieces += [self.data[copied:start], *inner]
            copied = stop
        pieces.append(self.data[copied:end])
        return pieces


def size(pieces: Sequence[Piece]) -> int:
    """The bytes that the pieces take once the holes are filled."""
    return sum(piece.length if isinstance(piece, Hole) else len(piece) for piece in pieces)


def _entry(key: bytes, value: bytes) -> bytes:
    """One ``external_data`` entry of a TensorProto."""
    body = b"\x0a" + varint(len(key)) + key + b"\x12" + varint(len(value)) + value
    return varint(_EXTERNAL_DATA << 3 | _BYTES) + varint(len(body)) + body


def cut(data: Buffer, location: str) -> bytes:
    """The model's bytes, in which each large ``raw_data`` is external data at ``location``: its own file.

    Args:
        data: a serialized ModelProto, usually a map of its file; only its small parts are read.
        location: the name that stands for the file itself.

    Raises:
        InvalidModelError: the bytes are no protobuf message, or end too early.
    """

    def external(start: int, stop: int) -> list[Piece]:
        offset, length = str(start).encode(), str(stop - start).encode()
        return [
            _EXTERNAL + _entry(b"location", location.encode()),
            _entry(b"offset", offset) + _entry(b"length", length),
        ]

    rewriter = _Rewriter(data, lambda start, stop: stop - start >= LARGE, external)
    return b"".join(piece for piece in rewriter.message("Model", 0, len(data)) if isinstance(piece, bytes))


class Marker:
    """Marks the ``raw_data`` of weights while a model is serialized, and finds the marks in its bytes."""

    def __init__(self) -> None:
        self._token = secrets.token_bytes(16)

    def mark(self, index: int) -> bytes:
        """What to put into ``raw_data`` in place of the payload number ``index``."""
        return self._token + index.to_bytes(4, "little")

    def index(self, marked: bytes) -> int:
        """The payload number of a mark."""
        return int.from_bytes(marked[-4:], "little")

    def places(self, data: bytes) -> list[int]:
        """Where the marks are."""
        found = []
        at = data.find(self._token)
        while at >= 0:
            found.append(at)
            at = data.find(self._token, at + 1)
        return found


def splice(data: bytes, marker: Marker, lengths: Sequence[int]) -> list[Piece]:
    """Cut a serialized ModelProto at its marks; each becomes a hole of its payload's length in bytes."""
    places = marker.places(data)

    def holds_mark(start: int, stop: int) -> bool:
        found = bisect_left(places, start)
        return found < len(places) and places[found] < stop

    def hole(start: int, stop: int) -> list[Piece]:
        index = marker.index(data[start:stop])
        return [varint(_RAW_DATA << 3 | _BYTES) + varint(lengths[index]), Hole(index, lengths[index])]

    return _Rewriter(data, holds_mark, hole).message("Model", 0, len(data))
