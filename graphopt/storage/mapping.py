"""Ranges of files as read-only memory; it needs numpy only, so that the worker can use it too."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray


def map_range(file: int, offset: int, length: int) -> NDArray[np.uint8]:
    """Map ``length`` bytes of an open file from ``offset``; the map ends with the last view of the array.

    The file may be closed and removed meanwhile. Unlike one map for all, which keeps every page resident that
    was ever read, this bounds memory by what is in use.

    Raises:
        OSError: the system does not map it.
        ValueError: the file is shorter than that.
    """
    if not length:
        return np.zeros(0, np.uint8)
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    view = mmap.mmap(file, offset - start + length, access=mmap.ACCESS_READ, offset=start)
    return np.frombuffer(view, np.uint8, length, offset - start)
