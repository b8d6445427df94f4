"""Files of models that nobody keeps: variants of one model, whose weights are written once for all of them.

Searches try dozens of variants that share most weights. Their .onnx files lie in one folder around one file
of weights, which only grows; nothing is synced, since nothing outlives the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.storage.files import refusals
from graphopt.storage.layout import Layout, aligned, write_tensor
from graphopt.storage.weights import OWN_MAP, MappedTensor

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.storage.weights import MappedFile, MemoryFile

_DATA = "weights"


class Pool:
    """A folder of such files, made when it is needed; they are gone with the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._offsets: dict[tuple[MappedFile | MemoryFile, int, int], int] = {}
        self._size = 0

    def write(self, model: Model) -> Path:
        """A file of the model, which the caller may remove.

        Raises:
            SystemRefusedError: the disk of the temporary folder is full.
        """
        path = self._folder / f"{next(self._numbers)}.onnx"
        with refusals(f"cannot write to {self._folder} (TMPDIR names another folder)"):
            self._folder.mkdir(exist_ok=True)
            layout = Layout.over(model.ir, _DATA, self._allocate)
            with open(path, "xb", 0) as file:
                layout.write_model(file)
        return path

    @contextmanager
    def written(self, model: Model) -> Iterator[Path]:
        """A file as of :meth:`write`, which is removed in the end."""
        path = self.write(model)
        try:
            yield path
        finally:
            path.unlink()

    def _allocate(self, tensor: ir.TensorProtocol, initializer: bool) -> int | None:
        """Where a weight lies, which is written when it is first met; small ones stay inside their models."""
        if not initializer or not isinstance(tensor, MappedTensor) or tensor.nbytes < OWN_MAP:
            return None
        key = (tensor.file, tensor.offset, tensor.nbytes)
        if key not in self._offsets:
            offset = aligned(self._size, tensor)
            with open(self._folder / _DATA, "r+b" if self._size else "xb", 0) as file:
                file.seek(offset)
                write_tensor(file, tensor)
            self._offsets[key], self._size = offset, offset + tensor.nbytes
        return self._offsets[key]
