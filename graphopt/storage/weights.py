"""Weights that stay in their files: memory-mapped, read when a pass asks, copied range by range on saving."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from graphopt.errors import InvalidModelError, SystemRefusedError

_CHUNK = 1 << 20  # bytes read at once


class MappedFile:
    """One read-only map and one descriptor of a file; both live as long as a tensor that lies in it."""

    def __init__(self, path: Path) -> None:
        """Open and map the file.

        Raises:
            SystemRefusedError: the system does not let us read or map it.
        """
        self.path = path
        try:
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 - as long as the map is in use
            self.size = os.fstat(self._file.fileno()).st_size
            empty = self.size == 0
            self.data: mmap.mmap | bytes = (
                b"" if empty else mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            )
        except OSError as error:
            raise SystemRefusedError(f"cannot read {path}: {error.strerror or error}") from error

    def fileno(self) -> int | None:
        """The descriptor to copy ranges from."""
        return self._file.fileno()

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield a range in chunks, past the map, so that it never counts as resident memory."""
        while length > 0:
            chunk = os.pread(self._file.fileno(), min(length, _CHUNK), offset)
            if not chunk:
                raise SystemRefusedError(f"cannot read {self.path}: it was shortened while in use")
            offset, length = offset + len(chunk), length - len(chunk)
            yield chunk

    def forget(self, offset: int, length: int) -> None:
        """Let the system take back the pages of a range; the next read maps them again."""
        page = mmap.PAGESIZE
        start = offset // page * page
        if isinstance(self.data, mmap.mmap):
            self.data.madvise(mmap.MADV_DONTNEED, start, min(offset + length, self.size) - start)


class MemoryFile:
    """The same over a serialized model in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def fileno(self) -> int | None:
        """There is nothing to copy ranges from."""
        return None

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield a range."""
        yield self.data[offset : offset + length]

    def forget(self, offset: int, length: int) -> None:
        """The bytes have no other home."""


class LeafTensor(ir.TensorProtocol):
    """What onnx-ir asks of every tensor, over ``numpy()`` and ``tobytes()``."""

    def __init__(self, dtype: ir.DataType, shape: ir.Shape, name: str | None = None) -> None:
        self.dtype = dtype
        self.shape = shape
        self.name = name
        self.doc_string: str | None = None
        self.metadata_props: dict[str, str] = {}
        self.meta: dict[str, Any] = {}

    @property
    def size(self) -> int:
        """The number of elements."""
        size = 1
        for dim in self.shape.numpy():
            size *= dim
        return size

    @property
    def nbytes(self) -> int:
        """The number of bytes of the data, packed types packed."""
        return -(-self.size * self.dtype.bitwidth // 8)

    @property
    def raw(self) -> Any:
        """The tensor is its own raw form."""
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.asarray(self.numpy(), dtype=dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> Any:
        return self.numpy().__dlpack_device__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}<{self.dtype},{self.shape}>(name={self.name!r})"


class MappedTensor(LeafTensor):
    """A tensor that lies in a file.

    Attributes:
        file: the file; shared by all tensors in it.
        offset: where the data starts, in bytes.
        length: how many bytes it takes.
    """

    def __init__(
        self,
        file: MappedFile | MemoryFile,
        offset: int,
        dtype: ir.DataType,
        shape: ir.Shape,
        name: str | None = None,
    ) -> None:
        super().__init__(dtype, shape, name)
        self.file = file
        self.offset = offset
        self.length = self.nbytes

    def numpy(self) -> np.ndarray[Any, Any]:
        """A read-only view of the map; types of less than a byte are unpacked into a new array."""
        shape = self.shape.numpy()
        if self.dtype.bitwidth < 8:
            packed = np.frombuffer(self.file.data, np.uint8, self.length, self.offset)
            return ir.PackedTensor(packed, self.dtype, shape=shape).numpy()
        dtype = self.dtype.numpy().newbyteorder("<")
        return np.frombuffer(self.file.data, dtype, self.size, self.offset).reshape(shape)

    def tobytes(self) -> bytes:
        """A copy of the data, little-endian."""
        return bytes(self.file.data[self.offset : self.offset + self.length])

    def chunks(self) -> Iterator[bytes]:
        """The data in pieces of at most 1 MiB that never count as mapped memory."""
        return self.file.read(self.offset, self.length)

    def forget(self) -> None:
        """Give the pages back that ``numpy()`` brought in; call it once the view is no longer needed."""
        self.file.forget(self.offset, self.length)


class SparseTensor(LeafTensor):
    """A sparse tensor as ONNX stores it; ``numpy()`` is its dense form.

    Attributes:
        values: the non-zero elements, shape [n].
        indices: their positions, int64, [n] in the flattened tensor or [n, rank].
    """

    def __init__(self, values: ir.TensorProtocol, indices: ir.TensorProtocol, dims: tuple[int, ...]) -> None:
        super().__init__(values.dtype, ir.Shape(dims, frozen=True), values.name)
        self.values = values
        self.indices = indices

    def numpy(self) -> np.ndarray[Any, Any]:
        """The dense array."""
        dims = self.shape.numpy()
        values, indices = self.values.numpy(), self.indices.numpy()
        dense = np.zeros(dims, values.dtype)
        where = tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, dims)
        dense[where] = values
        return dense

    def tobytes(self) -> bytes:
        """The bytes of the dense array."""
        return ir.Tensor(self.numpy(), dtype=self.dtype).tobytes()


def chunks(tensor: ir.TensorProtocol) -> Iterator[bytes]:
    """The little-endian bytes of any tensor but a string tensor, in pieces."""
    if isinstance(tensor, MappedTensor):
        yield from tensor.chunks()
    else:
        yield tensor.tobytes()


def digest(tensor: ir.TensorProtocol) -> bytes:
    """A hash of the tensor's bytes, read in pieces; string tensors by their strings."""
    sha = hashlib.blake2b(digest_size=16)
    if isinstance(tensor, ir.StringTensor):
        for item in tensor.string_data():
            sha.update(len(item).to_bytes(8, "little") + item)
    else:
        for chunk in chunks(tensor):
            sha.update(chunk)
    return sha.digest()


class DataFiles:
    """Opens the external data files of one model, each once, and only where they may lie.

    Args:
        path: the model file; None for a model that has none, whose external data is refused.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._files: dict[str, MappedFile] = {}

    @property
    def paths(self) -> frozenset[Path]:
        """The files that were opened."""
        return frozenset(file.path for file in self._files.values())

    def open(self, location: str, tensor: str) -> MappedFile:
        """Map the file at ``location``, relative to the model's folder.

        Raises:
            InvalidModelError: no such file, or it lies outside the folders of the model and of the file that
                the model's path resolves to.
        """
        if location not in self._files:
            self._files[location] = MappedFile(self._resolve(location, tensor))
        return self._files[location]

    def _resolve(self, location: str, tensor: str) -> Path:
        where = f"external data {location!r} of tensor {tensor!r}"
        if self._path is None:
            raise InvalidModelError(f"{where}: a model in memory has no folder; give its path instead")
        if not location or os.path.isabs(location) or ".." in Path(location).parts or "\0" in location:
            raise InvalidModelError(f"{where} is refused: it must be a path inside the model's folder")
        homes = [self._path.absolute().parent, self._path.resolve().parent]
        for home in homes:
            found = home / location
            if not found.exists():
                continue
            if not any(found.resolve().is_relative_to(folder.resolve()) for folder in homes):
                raise InvalidModelError(f"{where} is refused: it is a link out of the model's folder")
            if not found.is_file():
                raise InvalidModelError(f"{where} is not a file")
            return found
        raise InvalidModelError(f"{where} is missing: no such file in {homes[0]}")
