"""Samples that are needed again and again: in a file, where they take no memory, and no time to read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from graphopt.runtime.values import STRING, FileRange, Tensor, Value
from graphopt.samples.sampling import Sample
from graphopt.storage.files import refusals, write_all

_LEAST = 1 << 12  # bytes; smaller tensors stay in memory
_ALIGNMENT = 64


def shelved(samples: Iterable[Sample], folder: Path) -> list[Sample]:
    """The same samples with their tensors in a file of this folder, which must not go before them.

    Raises:
        SystemRefusedError: the disk of the folder is full.
    """
    with refusals(f"cannot keep samples in {folder} (TMPDIR names another folder)"):
        handle, path = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb", 0) as file:
            return [{name: _moved(value, file, path) for name, value in one.items()} for one in samples]


def _moved(value: Value, file: BinaryIO, path: str) -> Value:
    if not isinstance(value, Tensor) or value.elem_type == STRING or value.nbytes < _LEAST:
        return value
    offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
    file.seek(offset)
    write_all(file, [value.raw().data])
    return replace(value, data=FileRange(path, offset, value.nbytes))
