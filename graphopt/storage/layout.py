"""Where each weight goes in the files of a saved model, and how it gets there: copied from where it lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

import onnx
import onnx_ir as ir

from graphopt.storage.encode import encode_model
from graphopt.storage.files import copy_range, write_all
from graphopt.storage.weights import MappedTensor, chunks
from graphopt.storage.wire import Hole, Marker, Piece, size, splice

_PAGE = 4096
_WORD = 64
_PAGE_FROM = 1 << 20  # as onnx does: 1 MiB and more starts on a page, so that a runtime can map it


Allocate = Callable[[ir.TensorProtocol, bool], int | None]
"""Where in the data file a tensor lies: (tensor, whether it is an initializer); None keeps it inside."""


@dataclass
class Layout:
    """A model's files, laid out but not written.

    Attributes:
        pieces: the .onnx file: its bytes, with holes for the weights inside.
        inside: the tensors that fill the holes.
        outside: the tensors of the data file, each with its offset.
        data_size: the length of the data file in bytes.
    """

    pieces: list[Piece] = field(default_factory=list)
    inside: list[ir.TensorProtocol] = field(default_factory=list)
    outside: list[tuple[int, ir.TensorProtocol]] = field(default_factory=list)
    data_size: int = 0

    @classmethod
    def of(cls, model: ir.Model, data_name: str, *, initializers: bool, attributes: bool) -> Layout:
        """Lay a model out.

        Args:
            model: the model.
            data_name: the name of the data file.
            initializers: whether large initializers go into the data file.
            attributes: whether large tensors in attributes do.
        """
        outside: list[tuple[int, ir.TensorProtocol]] = []

        def allocate(tensor: ir.TensorProtocol, initializer: bool) -> int | None:
            if not (initializers if initializer else attributes):
                return None
            offset = aligned(_end(outside), tensor)
            outside.append((offset, tensor))
            return offset

        layout = cls.over(model, data_name, allocate)
        layout.outside, layout.data_size = outside, _end(outside)
        return layout

    @classmethod
    def over(cls, model: ir.Model, data_name: str, allocate: Allocate) -> Layout:
        """Lay a model out over a data file that somebody else writes; ``allocate`` says where in it."""
        layout, marker = cls(), Marker()

        def place(proto: onnx.TensorProto, tensor: ir.TensorProtocol, initializer: bool) -> None:
            offset = allocate(tensor, initializer)
            if offset is None:
                proto.raw_data = marker.mark(len(layout.inside))
                layout.inside.append(tensor)
                return
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, value in ("location", data_name), ("offset", offset), ("length", tensor.nbytes):
                proto.external_data.add(key=key, value=str(value))

        proto = encode_model(model, place)
        lengths = [tensor.nbytes for tensor in layout.inside]
        layout.pieces = splice(proto.SerializeToString(), marker, lengths)
        return layout

    @property
    def model_size(self) -> int:
        """The length of the .onnx file in bytes."""
        return size(self.pieces)

    def write_model(self, file: BinaryIO) -> None:
        """Write the .onnx file."""
        for piece in self.pieces:
            if isinstance(piece, Hole):
                write_tensor(file, self.inside[piece.index])
            else:
                write_all(file, [piece])

    def write_data(self, file: BinaryIO) -> None:
        """Write the data file; the gaps before aligned tensors are zero."""
        for offset, tensor in self.outside:
            file.seek(offset)
            write_tensor(file, tensor)


def aligned(end: int, tensor: ir.TensorProtocol) -> int:
    """The first offset from ``end`` on where a tensor may start."""
    align = _PAGE if tensor.nbytes >= _PAGE_FROM else _WORD
    return -(-end // align) * align


def _end(outside: list[tuple[int, ir.TensorProtocol]]) -> int:
    """The length of a data file that ends with the last of these."""
    return outside[-1][0] + outside[-1][1].nbytes if outside else 0


def write_tensor(file: BinaryIO, tensor: ir.TensorProtocol) -> None:
    """Write a tensor's bytes, inside the kernel if they lie in a file.

    Raises:
        OSError: the system refuses.
    """
    if not (isinstance(tensor, MappedTensor) and _copied(file, tensor)):
        write_all(file, chunks(tensor))


def _copied(file: BinaryIO, tensor: MappedTensor) -> bool:
    source = tensor.file.fileno()
    return source is not None and copy_range(source, tensor.offset, tensor.nbytes, file)
