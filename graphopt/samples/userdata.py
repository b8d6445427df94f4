"""Reading the user's samples lazily: .npz files, ONNX test data sets, and Python functions."""

from __future__ import annotations

import importlib
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import DataError, GraphoptError, UsageError
from graphopt.runtime.values import Value
from graphopt.samples.inputs import InputSpec, check

Array = NDArray[Any]
Reader = Callable[[], Iterator[dict[str, Value]]]
# The array of an .npz that is no input, but what the outputs are judged by.
LABELS = "labels"


def reader(source: str, specs: Sequence[InputSpec]) -> Reader:
    """What reads the samples of a source, each time from the start.

    Raises:
        UsageError: there is no such file, folder or function.
    """
    path = Path(source)
    if path.is_dir():
        return _folder_reader(path, specs)
    if path.is_file():
        return partial(_read_npz, [path], specs)
    module, separator, function = source.partition(":")
    if not separator or os.sep in module:
        raise UsageError(f"no such data: {source} (a file, a folder, or package.module:function)")
    return partial(_call, load_function(module, function), source, specs)


def ignored(source: str, specs: Sequence[InputSpec]) -> str:
    """What of a source no sample takes, in words: labels in an .npz; empty if there is nothing."""
    path = Path(source)
    if not path.is_file() or any(spec.name == LABELS for spec in specs):
        return ""
    with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        if f"{LABELS}.npy" in archive.namelist():
            return f"its array '{LABELS}' is no input and was skipped"
    return ""


def _folder_reader(folder: Path, specs: Sequence[InputSpec]) -> Reader:
    sets = sorted(folder.glob("test_data_set_*"))
    if next(folder.glob("input_*.pb"), None):
        sets = [folder]
    files = sorted(folder.glob("*.npz"))
    if not sets and not files:
        raise UsageError(f"{folder} holds neither .npz files nor test_data_set_* folders")
    return partial(_read_sets, sets, specs) if sets else partial(_read_npz, files, specs)


def load_function(module: str, name: str) -> Callable[..., Any]:
    """A function of the user's, whose module may lie in the working directory.

    Raises:
        UsageError: there is no such module or function.
    """
    sys.path.insert(0, os.getcwd())  # the user's own module beside which the command was called
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise UsageError(f"cannot load {module}:{name}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise UsageError(f"{module}:{name} is no function")
    function: Callable[..., Any] = found
    return function


def _call(function: Callable[[], Any], source: str, specs: Sequence[InputSpec]) -> Iterator[dict[str, Value]]:
    for index, sample in enumerate(_yielded(function, source)):
        where = f"{source}: sample {index}"
        if not isinstance(sample, dict):
            raise DataError(f"{where} is {type(sample).__name__}, not a dict of arrays by input name")
        yield check(specs, sample, where)


def _yielded(function: Callable[[], Any], source: str) -> Iterator[Any]:
    """What the user's function yields; what it raises is the data's fault."""
    try:
        yield from function()
    except GraphoptError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{source} raised {type(error).__name__}: {error}") from error


def _read_npz(files: Sequence[Path], specs: Sequence[InputSpec]) -> Iterator[dict[str, Value]]:
    for path in files:
        try:
            with zipfile.ZipFile(path) as archive:
                yield from _read_archive(archive, path, specs)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise DataError(f"{path} is no readable .npz file: {error}") from None


def _read_archive(
    archive: zipfile.ZipFile, path: Path, specs: Sequence[InputSpec]
) -> Iterator[dict[str, Value]]:
    """Samples of one file: every array is read from its stream, one slice at a time."""
    by_name = {spec.name: spec for spec in specs}
    stored = (name.removesuffix(".npy") for name in archive.namelist())
    names = [name for name in stored if name != LABELS or name in by_name]
    if unknown := sorted(set(names) - set(by_name)):
        check(specs, dict.fromkeys(unknown), str(path))
    arrays = {name: _Stack(archive, name, by_name[name], path) for name in names}
    for index in range(sample_count({name: stack.count for name, stack in arrays.items()}, str(path))):
        sample = {name: stack.next() for name, stack in arrays.items()}
        yield check(specs, sample, f"{path}: sample {index}")


def sample_count(counts: Mapping[str, int], where: str) -> int:
    """How many samples arrays hold together; one that holds a single sample serves for all.

    Raises:
        DataError: they hold different numbers.
    """
    several = set(counts.values()) - {1}
    if len(several) > 1:
        told = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"{where}: inputs have different numbers of samples: {told}")
    return max(several, default=1)


def cut(shape: tuple[int, ...], spec: InputSpec) -> tuple[tuple[int, ...], int]:
    """The shape of one sample in an array of ``shape``, and the number of samples.

    An array of one axis more than the input is a stack of whole inputs; one of the input's own rank is cut
    along its first axis into as many rows as the input takes (one, if that is dynamic).
    """
    rank = len(spec.shape) if spec.shape is not None else len(shape) - 1
    if shape and len(shape) == rank + 1:
        return shape[1:], shape[0]
    if shape and len(shape) == rank and spec.shape:
        rows = spec.shape[0] if isinstance(spec.shape[0], int) else 1
        if rows and shape[0] % rows == 0:
            return (rows, *shape[1:]), shape[0] // rows
    return shape, 1


class _Stack:
    """One array of an .npz file, read as a stream of samples along its leading axis.

    A single sample serves all samples of the other inputs.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str, spec: InputSpec, path: Path) -> None:
        self._stream = archive.open(f"{name}.npy")
        try:
            shape, self._fortran, self._dtype = _header(self._stream)
        except ValueError as error:
            raise DataError(f"{path}: array {name!r} cannot be read: {error}") from None
        if self._dtype.hasobject or self._fortran:
            raise DataError(f"{path}: array {name!r} must be a plain array in C order, without objects")
        self._shape, self.count = cut(shape, spec)
        self._single: Array | None = None

    def next(self) -> Array:
        """The next sample, or the only one again."""
        if self._single is not None:
            return self._single
        length = math.prod(self._shape) * self._dtype.itemsize
        data = self._stream.read(length)
        if len(data) != length:
            raise EOFError("an array ends before its last sample")
        array = np.frombuffer(data, self._dtype).reshape(self._shape)
        if self.count == 1:
            self._single = array
        return array


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, fortran and len(shape) > 1, dtype


def _read_sets(folders: Sequence[Path], specs: Sequence[InputSpec]) -> Iterator[dict[str, Value]]:
    for folder in folders:
        sample = {}
        for index, spec in enumerate(specs):
            path = folder / f"input_{index}.pb"
            if path.exists():
                sample[spec.name] = _read_proto(path, spec)
        if next(iter(folder.glob(f"input_{len(specs)}.pb")), None):
            raise DataError(f"{folder} has more inputs than the model, which takes {len(specs)}")
        yield check(specs, sample, str(folder))


def _read_proto(path: Path, spec: InputSpec) -> Any:
    """The value in an ONNX test data file, whose message type follows from the input's type."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    kinds: dict[str, tuple[Any, Any]] = {
        "tensor": (onnx.TensorProto, numpy_helper.to_array),
        "sequence": (onnx.SequenceProto, numpy_helper.to_list),
        "optional": (onnx.OptionalProto, numpy_helper.to_optional),
        "other": (onnx.MapProto, numpy_helper.to_dict),
    }
    message, convert = kinds[spec.kind]
    try:
        return convert(message.FromString(path.read_bytes()))
    except (DecodeError, ValueError, TypeError) as error:
        raise DataError(f"{path} is no {message.__name__}: {error}") from None
