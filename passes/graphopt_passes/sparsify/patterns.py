"""Which weights may stay: a share of them anywhere, or so many of each group (N:M).

Scores are [rows, columns], higher is better; where groups count, columns stand in the order in which they
are grouped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.accumulators import Doubles

Mask = NDArray[np.bool_]


class Pattern(Protocol):
    """What a mask must look like."""

    @property
    def density(self) -> float:
        """The share of weights that stay."""

    def mask(self, scores: Doubles) -> Mask:
        """The best weights that fit the pattern."""

    def relaxed(self, part: float) -> Pattern:
        """A pattern from which that part of what is to go does not go yet."""

    def like(self, part: Mask) -> Pattern:
        """The pattern of some columns that are as full as a part of a mask."""


@dataclass(frozen=True)
class Anywhere:
    """A share of the weights, wherever they are."""

    density: float

    def mask(self, scores: Doubles) -> Mask:
        """The best of all."""
        kept = round(self.density * scores.size)
        if kept == 0:
            return np.zeros(scores.shape, bool)
        flat = np.zeros(scores.size, bool)
        flat[np.argpartition(scores, scores.size - kept, axis=None)[scores.size - kept :]] = True
        return flat.reshape(scores.shape)

    def relaxed(self, part: float) -> Anywhere:
        """See :meth:`Pattern.relaxed`."""
        return Anywhere(self.density + part * (1 - self.density))

    def like(self, part: Mask) -> Anywhere:
        """See :meth:`Pattern.like`."""
        return Anywhere(float(part.mean()))


@dataclass(frozen=True)
class Groups:
    """``kept`` of each ``size`` neighbouring columns, in every row."""

    kept: int
    size: int

    @property
    def density(self) -> float:
        """The share of weights that stay."""
        return self.kept / self.size

    def mask(self, scores: Doubles) -> Mask:
        """The best of each group; the number of columns is a multiple of its size."""
        groups = scores.reshape(len(scores), -1, self.size)
        ranks = np.argsort(np.argsort(-groups, axis=2, kind="stable"), axis=2, kind="stable")
        found: Mask = (ranks < self.kept).reshape(scores.shape)
        return found

    def relaxed(self, part: float) -> Groups:
        """The same: a group is never fuller."""
        return self

    def like(self, part: Mask) -> Groups:
        """The same."""
        return self


def along_channels(columns: int, kernel: int) -> NDArray[np.int64]:
    """The columns of a Conv in the order (kernel, channels), so that groups run along its channels.

    Weights are stored as (channels, kernel); sparse kernels of GPUs read them channels last.
    """
    return np.arange(columns).reshape(-1, kernel).T.reshape(-1)
