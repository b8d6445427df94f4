"""Union-find over the elements of axes, many at once: which of them can only be removed together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_FREE = np.iinfo(np.int64).max


class Elements:
    """Elements are numbers from 0 to ``count``; united ones form a unit, known by its smallest element.

    A unit is frozen once any of its elements is, for the reason that was given first.
    """

    def __init__(self) -> None:
        self._parent = np.empty(1024, np.int64)
        self._reason = np.full(1024, _FREE, np.int64)
        self._favoured = np.zeros(1024, np.bool_)
        self._reasons: dict[str, int] = {}
        self.count = 0

    def add(self, count: int) -> Ids:
        """New elements, each a unit of its own."""
        first, self.count = self.count, self.count + count
        while self.count > len(self._parent):
            self._grow()
        ids = np.arange(first, self.count)
        self._parent[ids] = ids
        return ids

    def _grow(self) -> None:
        size = len(self._parent)
        self._parent = np.concatenate([self._parent, np.empty(size, np.int64)])
        self._reason = np.concatenate([self._reason, np.full(size, _FREE, np.int64)])
        self._favoured = np.concatenate([self._favoured, np.zeros(size, np.bool_)])

    def find(self, ids: Ids) -> Ids:
        """The units that elements belong to."""
        units = self._parent[ids]
        while not np.array_equal(above := self._parent[units], units):
            units = above
        self._parent[ids] = units
        return units

    def unite(self, a: Ids, b: Ids) -> None:
        """Element ``a[i]`` goes with ``b[i]``, for all i; one of both may be a single element."""
        a, b = (self.find(ids) for ids in np.broadcast_arrays(a, b))
        before = np.concatenate([a, b])
        while (apart := a != b).any():
            low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
            np.minimum.at(self._parent, high, low)
            a, b = self.find(a), self.find(b)
        after = self.find(before)
        np.minimum.at(self._reason, after, self._reason[before])
        np.logical_or.at(self._favoured, after, self._favoured[before])

    def freeze(self, ids: Ids, reason: str) -> None:
        """These elements cannot be removed."""
        number = self._reasons.setdefault(reason, len(self._reasons))
        units = self.find(ids)
        self._reason[units] = np.minimum(self._reason[units], number)

    def favour(self, ids: Ids) -> None:
        """Where there is a choice of what is cut, these elements come first."""
        self._favoured[self.find(ids)] = True

    def is_frozen(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each element must stay."""
        return np.asarray(self._reason[self.find(ids)] != _FREE)

    def is_favoured(self, ids: Ids) -> bool:
        """Whether a choice of these elements comes first."""
        return bool(self._favoured[self.find(ids)].any())

    def reasons(self, ids: Ids) -> list[str]:
        """Why elements must stay, each reason once, in the order in which they were given."""
        texts = list(self._reasons)
        return [texts[number] for number in np.unique(self._reason[self.find(ids)]) if number != _FREE]
