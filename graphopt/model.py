"""Model: load and save a graph without loss, its weights memory-mapped and copied from file to file.

Saving writes the model as onnx-ir holds it with a mark in place of each large weight, cuts the bytes at the
marks and copies every weight from where it lies. So a protobuf with weights is never built, and neither
loading nor saving takes more memory than the graph itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from graphopt.errors import InvalidModelError, UnsupportedModelError, UsageError
from graphopt.storage.clone import clone_model
from graphopt.storage.decode import decode_model
from graphopt.storage.encode import encode_model
from graphopt.storage.files import Staged
from graphopt.storage.layout import Layout
from graphopt.storage.tensorproto import TensorReader
from graphopt.storage.weights import DataFiles, MappedFile, MemoryFile
from graphopt.storage.wire import cut

PROTOBUF_LIMIT = 2**31 - 1
"""The largest protobuf that its parsers accept, in bytes."""

_SELF = "\0graphopt"  # no file can have this name


@dataclass
class Model:
    """An ONNX model.

    Attributes:
        ir: the graph; passes change it in place.
        path: the file that it was loaded from.
        data_files: its external data; if there is any, the model has external data when it is saved, too.
    """

    ir: ir.Model
    path: Path | None = None
    data_files: frozenset[Path] = frozenset()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Load a model; weights of 4 KiB and more stay in their files.

        Raises:
            UsageError: no such file.
            SystemRefusedError: the system does not let us read it.
            InvalidModelError: it is no valid ONNX model, or its external data is missing or lies elsewhere.
            UnsupportedModelError: its opset or IR version is newer than the installed onnx, or it carries
                training information.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(
                f"no such file: {path}" if not path.is_dir() else f"{path} is a folder, not a model"
            )
        try:
            return cls._decode(MappedFile(path), path)
        except (InvalidModelError, UnsupportedModelError) as error:
            raise type(error)(f"{path}: {error}") from error.__cause__

    @classmethod
    def of(cls, model: Any) -> Model:
        """A model from whatever holds one.

        Args:
            model: a path, an onnx.ModelProto, an onnx_ir.Model, what ``torch.onnx.export(dynamo=True)``
                returns, or a Model, which is returned as it is. Objects of others are copied, not changed.

        Raises:
            UsageError: it is none of these.
            GraphoptError: as ``load``.
        """
        if isinstance(model, Model):
            return model
        if isinstance(model, str | os.PathLike):
            return cls.load(model)
        if isinstance(model, onnx.ModelProto):
            return cls._of_proto(model)
        held = getattr(model, "model", model)  # torch.onnx.ONNXProgram.model
        if isinstance(held, ir.Model):
            return _of_ir(held)
        raise UsageError(
            f"a {type(model).__name__} is no model; give a path, a ModelProto or an onnx_ir.Model"
        )

    @classmethod
    def _of_proto(cls, proto: onnx.ModelProto) -> Model:
        try:
            data = proto.SerializeToString()
        except (EncodeError, ValueError) as error:
            raise UnsupportedModelError(
                "the ModelProto exceeds 2 GB; save it with external data and give the path"
            ) from error
        return cls._decode(MemoryFile(data), None)

    @classmethod
    def _decode(cls, source: MappedFile | MemoryFile, path: Path | None) -> Model:
        data_files = DataFiles(path)
        try:
            proto = onnx.ModelProto.FromString(cut(source.data, _SELF))
        except DecodeError as error:
            raise InvalidModelError(
                "not an ONNX model, or a damaged one: protobuf cannot parse it"
            ) from error
        return cls(decode_model(proto, source, _SELF, data_files), path, data_files.paths)

    def clone(self) -> Model:
        """A copy that shares the tensors, and nothing else that a pass may change."""
        return Model(clone_model(self.ir), self.path, self.data_files)

    def skeleton(self) -> onnx.ModelProto:
        """The model as a protobuf in which weights of 4 KiB and more have a type and dims but no data."""

        def place(proto: onnx.TensorProto, tensor: ir.TensorProtocol, initializer: bool) -> None:
            proto.data_location = onnx.TensorProto.EXTERNAL
            proto.external_data.add(key="location", value=_SELF)

        return encode_model(self.ir, place)

    @property
    def weight_bytes(self) -> int:
        """Of the initializers of the main graph; none is read."""
        values = self.ir.graph.initializers.values()
        return sum(value.const_value.nbytes for value in values if value.const_value is not None)

    def file_size(self, *, external_data: bool = False) -> int:
        """The bytes that ``save`` would write, data files included."""
        layout = self._layout(external_data, "model.onnx.data")
        return layout.model_size + layout.data_size

    def save(
        self, path: str | os.PathLike[str], *, external_data: bool = False, in_place: bool = False
    ) -> None:
        """Write the model; the file appears whole or not at all.

        Args:
            path: the output. Weights go into ``<path>.data`` if they lay in files of their own, if
                ``external_data`` says so, or if one file would exceed 2 GB.
            external_data: keep weights out of the .onnx file.
            in_place: allow the output to replace the file that the model was loaded from.

        Raises:
            UsageError: the output's folder is missing, the output is a folder, or it is the input and
                ``in_place`` is not set.
            SystemRefusedError: the disk is full, permission is denied; nothing is left behind.
        """
        with self.stage(path, external_data=external_data, in_place=in_place) as staged:
            staged.commit()

    def stage(
        self, path: str | os.PathLike[str], *, external_data: bool = False, in_place: bool = False
    ) -> Staged:
        """Write the model beside ``path``, ready to be loaded from ``Staged.path`` before it is committed.

        Args and errors are those of ``save``.
        """
        path = Path(path)
        self._refuse_overwriting(path, in_place)
        staged = Staged(path)
        try:
            data_name = staged.free_name(".data")
            layout = self._layout(external_data, data_name)
            if layout.outside:
                staged.write(layout.write_data, data_name)
            staged.write(layout.write_model)
        except BaseException:
            staged.discard()
            raise
        return staged

    def _refuse_overwriting(self, path: Path, in_place: bool) -> None:
        if not path.exists():
            return
        for file in self.files():
            if not file.exists() or not file.samefile(path):
                continue
            if self.path is None or not file.samefile(self.path):
                raise UsageError(f"{path} holds the weights of the input; choose another output")
            if not in_place:
                raise UsageError(f"{path} is the input; choose another output, or say --in-place")

    def files(self) -> set[Path]:
        """The files that the model came from: its own and its external data."""
        return {*self.data_files, *([self.path] if self.path else [])}

    def _layout(self, external_data: bool, data_name: str) -> Layout:
        """Lay out the output: all in one file, else the initializers apart, else whatever is large."""
        apart = external_data or bool(self.data_files)
        for initializers, attributes in ((apart, False), (True, False), (True, True)):
            layout = Layout.of(self.ir, data_name, initializers=initializers, attributes=attributes)
            if layout.model_size <= PROTOBUF_LIMIT:
                return layout
        raise UnsupportedModelError("the model exceeds 2 GB without its weights; no protobuf can hold it")


def _of_ir(model: ir.Model) -> Model:
    """Copy; external tensors, which take a map and a descriptor each in onnx-ir, share them."""
    clone = clone_model(model)
    homes: dict[str, DataFiles] = {}
    for value in [value for graph in clone.graphs() for value in graph.initializers.values()]:
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            folder = os.fspath(tensor.base_dir)
            data_files = homes.setdefault(folder, DataFiles(Path(folder, "model.onnx")))
            reader = TensorReader(MemoryFile(b""), _SELF, data_files)
            value.const_value = reader.tensor(ir.serde.serialize_tensor(tensor), "the model")
    return Model(clone, data_files=frozenset(path for home in homes.values() for path in home.paths))
