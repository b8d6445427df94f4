"""Weights that stay in their files: memory-mapped, read when a pass asks, copied range by range on saving."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.errors import InvalidModelError, SystemRefusedError
from graphopt.storage.files import refusals
from graphopt.storage.mapping import map_range

OWN_MAP = 1 << 16
"""Bytes from which on a tensor is mapped by itself while it is read, and a new one is kept in a file."""
_CHUNK = 1 << 20  # bytes read at once


class MappedFile:
    """A file whose ranges are read as memory; open as long as a tensor that lies in it."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            SystemRefusedError: the system does not let us read it.
        """
        self.path = path
        with refusals(f"cannot read {path}"):
            self._file: BinaryIO = open(path, "rb", 0)  # noqa: SIM115 - as long as a tensor lies in it
            self.size = os.fstat(self._file.fileno()).st_size

    @cached_property
    def data(self) -> mmap.mmap | bytes:
        """One map of the whole file, for what is small: pages that were read stay resident."""
        with refusals(f"cannot read {self.path}"):
            return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""

    def view(self, offset: int, length: int) -> NDArray[np.uint8]:
        """A read-only view of a range; a large one has a map of its own, which ends with the view.

        Raises:
            SystemRefusedError: the system does not map it, or the file was shortened.
        """
        if length < OWN_MAP:
            return np.frombuffer(self.data, np.uint8, length, offset)
        try:
            with refusals(f"cannot read {self.path}"):
                return map_range(self._file.fileno(), offset, length)
        except ValueError as error:
            raise self._shortened() from error

    def shared_path(self) -> str | None:
        """A path by which another process of this user can read the file; None where there is none.

        A file that was removed or replaced since it was opened still has one on Linux, in /proc.
        """
        descriptor = self._file.fileno()
        with suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(descriptor)):
                return os.path.abspath(self.path)
        link = f"/proc/{os.getpid()}/fd/{descriptor}"
        return link if os.path.exists(link) else None

    def _shortened(self) -> SystemRefusedError:
        return SystemRefusedError(f"cannot read {self.path}: it was shortened while in use")

    def fileno(self) -> int | None:
        """The descriptor to copy ranges from."""
        return self._file.fileno()

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield a range in chunks, past the map, so that it never counts as resident memory."""
        while length > 0:
            chunk = os.pread(self._file.fileno(), min(length, _CHUNK), offset)
            if not chunk:
                raise self._shortened()
            offset, length = offset + len(chunk), length - len(chunk)
            yield chunk


class MemoryFile:
    """The same over a serialized model in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def fileno(self) -> int | None:
        """There is nothing to copy ranges from."""
        return None

    def view(self, offset: int, length: int) -> NDArray[np.uint8]:
        """A read-only view of a range."""
        return np.frombuffer(self.data, np.uint8, length, offset)

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield a range."""
        yield self.data[offset : offset + length]


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
        """A read-only view of the file; types of less than a byte are unpacked into a new array.

        Large tensors are mapped anew at each call, and their memory is given back with the last view.
        """
        shape, raw = self.shape.numpy(), self.file.view(self.offset, self.length)
        if self.dtype.bitwidth < 8:
            return ir.PackedTensor(raw, self.dtype, shape=shape).numpy()
        return raw.view(self.dtype.numpy().newbyteorder("<")).reshape(shape)

    def tobytes(self) -> bytes:
        """A copy of the data, little-endian."""
        return self.file.view(self.offset, self.length).tobytes()

    def chunks(self) -> Iterator[bytes]:
        """The data in pieces of at most 1 MiB that never count as mapped memory."""
        return self.file.read(self.offset, self.length)


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


def chunks(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """The little-endian bytes of any tensor but a string tensor, in pieces; nothing large is copied."""
    if isinstance(tensor, MappedTensor):
        yield from tensor.chunks()
    elif isinstance(tensor, ir.Tensor) and tensor.dtype.bitwidth >= 8:
        array = tensor.numpy()
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        yield little.reshape(-1).view(np.uint8).data
    else:
        yield tensor.tobytes()


def slices(tensor: ir.TensorProtocol, elements: int) -> Iterator[tuple[slice, np.ndarray[Any, Any]]]:
    """A tensor along its first axis, about so many elements at a time; of a file, only these are in memory.

    Yields:
        Which indices of the first axis, and the values there. A tensor of rank 0 has no such axis.
    """
    mapped = isinstance(tensor, MappedTensor) and tensor.dtype.bitwidth >= 8
    whole = None if mapped else tensor.numpy()
    rows = tensor.shape.numpy()[0]
    step = max(1, elements * rows // max(tensor.size, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        yield part, (tensor.numpy() if whole is None else whole)[part]


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
