"""Weights that passes make go to a file at once, so that they take as little memory as those of the input."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from graphopt.storage.files import refusals, write_all
from graphopt.storage.weights import OWN_MAP, LeafTensor, MappedFile, MappedTensor, chunks


class Spill:
    """Keeps large tensors in one file without a name, which is gone with the last of them.

    Having no name, it is also gone when the process is killed.
    """

    def __init__(self) -> None:
        self._file: _SpillFile | None = None

    def keep(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """The same tensor in the file, mapped when it is read; small and mapped ones as they are.

        Raises:
            SystemRefusedError: the disk of the temporary folder is full.
        """
        if isinstance(tensor, LeafTensor) or tensor.dtype == ir.DataType.STRING or tensor.nbytes < OWN_MAP:
            return tensor
        if self._file is None:
            self._file = _SpillFile()
        return self._file.append(tensor)


class _SpillFile(MappedFile):
    """A file that only grows, for a view may outlive its tensor."""

    def __init__(self) -> None:
        self.path = Path(tempfile.gettempdir())
        with refusals(f"cannot make a temporary file in {self.path}"):
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - as long as a tensor lies in it
        self.size = 0

    def append(self, tensor: ir.TensorProtocol) -> MappedTensor:
        shape = ir.Shape(tensor.shape.numpy(), frozen=True)
        kept = MappedTensor(self, self.size, tensor.dtype, shape, tensor.name)
        kept.doc_string, kept.metadata_props = tensor.doc_string, dict(tensor.metadata_props)
        with refusals(f"cannot write new weights to {self.path} (TMPDIR names another folder)"):
            self._file.seek(self.size)
            write_all(self._file, chunks(tensor))
        self.size += kept.length
        return kept
