"""Which outputs are scores of classes, so that the largest of each row is a decision.

No file says so. Probabilities and log-probabilities can be told by their sums. Otherwise names that people
give count, and last the form: rows of a matrix that do not have unit length. Embeddings, hidden states and
boxes are left to the SQNR: where their largest element lies means nothing.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_DECISIONS = re.compile(r"logit|prob|class|cls|score|softmax|label|pred", re.IGNORECASE)
_OTHER = re.compile(
    r"embed|feature|hidden|state|pool|encod|vector|box|bbox|loc|mask|dist|coord", re.IGNORECASE
)
_ROUNDING = 2e-3


def class_axis(shape: tuple[int, ...]) -> int:
    """The axis that classes would lie on: the last one, before axes of 1 that pooling has left behind."""
    axis = len(shape) - 1
    while axis > 1 and shape[axis] == 1:
        axis -= 1
    return axis


def are_classes(name: str, output: Array) -> bool:
    """Whether a floating output [..., C] or [..., C, 1, 1] looks like scores of C ≥ 2 classes."""
    axis = class_axis(output.shape)
    if output.dtype.kind != "f" or axis < 0 or output.shape[axis] < 2 or not output.size:
        return False
    rows = output.reshape(-1, output.shape[axis]).astype(np.float64)
    if not np.isfinite(rows).all():
        return False
    if _sum_to_one(rows) or ((rows <= 0).all() and _sum_to_one(np.exp(rows))):
        return True
    if _OTHER.search(name):
        return False
    return bool(_DECISIONS.search(name)) or (axis == 1 and not _are_unit(rows))


def _sum_to_one(rows: Array) -> bool:
    return bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, rtol=0, atol=_ROUNDING))


def _are_unit(rows: Array) -> bool:
    """Whether the rows are normalized, as embeddings are that will be compared by their cosine."""
    return np.allclose(np.linalg.norm(rows, axis=1), 1, rtol=0, atol=_ROUNDING)
