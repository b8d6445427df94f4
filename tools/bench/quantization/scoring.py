"""How the outputs of recognizers and encoders become texts and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def decode(indices: Array, characters: Sequence[str]) -> str:
    """Greedy decoding of CTC (connectionist temporal classification, Graves et al., 2006); 0 is the blank."""
    kept = [b for a, b in zip([0, *indices], indices, strict=False) if b != a and b]
    return "".join(characters[index] for index in kept)


def spearman(found: Array, expected: Array) -> float:
    """Rank correlation; equal values share their mean rank."""
    return float(np.corrcoef(ranks(found), ranks(expected))[0, 1])


def ranks(values: Array) -> Array:
    """Rank of each value from 1 on, the mean rank among equals."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


def intersection_over_union(found: Array, expected: Array) -> float:
    """Percentage of what is true in either of two masks that is true in both; 100 where nothing is."""
    either = int((found | expected).sum())
    return 100 * int((found & expected).sum()) / either if either else 100.0
