"""One layer made sparse: its mask by the method that was asked for, and what is left fitted to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.accumulators import Doubles
from graphopt.runtime.pairs import RowPairs, Shares, Sums
from graphopt_passes.refit.linear import Linear
from graphopt_passes.refit.recurrent import Layer
from graphopt_passes.refit.solve import RIDGES, Fit, Mask, Problem
from graphopt_passes.sparsify import masks
from graphopt_passes.sparsify.patterns import Groups, Pattern, along_channels
from graphopt_passes.sparsify.wide import Wide

METHODS = ("obs", "energy", "magnitude")
"""How weights are chosen: by what the others cannot make up for, by |w|·‖x‖, or by |w|."""

_DAMP = 1e-2  # part of the mean of H's diagonal, for masks
_UNFITTED = 0.0  # the ridge of what is left as it was


@dataclass(frozen=True)
class Sparse:
    """A layer made sparse, or fitted as it is.

    Attributes:
        fit: its weight and bias.
        error: of its output on samples that nothing was fitted to, beside what that varies.
    """

    fit: Fit
    error: float


@dataclass(frozen=True)
class Fitter:
    """How layers are made sparse.

    Attributes:
        method: one of :data:`METHODS`.
        refit: whether what is left is fitted to make up for what is not.
    """

    method: str = "obs"
    refit: bool = True

    def sparse(self, layer: Layer, pairs: Shares | RowPairs, pattern: Pattern | None) -> Sparse:
        """A layer fitted on the best of several masks and ridges, by the samples that fit nothing.

        Args:
            layer: gives the weight to start from.
            pairs: what it reads and should give.
            pattern: what stays of it; None for all.
        """
        if isinstance(pairs, RowPairs):
            return Sparse(*self.wide(layer, pairs).sparse(pattern))
        start = layer.fit()
        problem = Problem.of(pairs.fit, start, shifts=layer.can_shift)
        mask = None if pattern is None else self._mask(layer, problem, pattern, pairs.held)
        fits = {_UNFITTED: _masked(start, mask)}
        if self.refit:
            fits |= {ridge: _solved(problem, mask, ridge) for ridge in RIDGES}
        errors = {ridge: fit.relative_error(pairs.held) for ridge, fit in fits.items()}
        best = min(errors, key=lambda ridge: errors[ridge])
        if best == _UNFITTED:
            return Sparse(fits[best], errors[best])
        whole = Problem.of(pairs.fit + pairs.held, start, shifts=layer.can_shift)
        return Sparse(_solved(whole, mask, best), errors[best])

    def wide(self, layer: Layer, pairs: RowPairs) -> Wide:
        """How a layer is made sparse of which only rows are known."""
        assert isinstance(layer, Linear)
        return Wide(layer, pairs, self.method == "magnitude", self.refit)

    def rough(self, layer: Layer, pairs: Shares | RowPairs, pattern: Pattern) -> Fit:
        """A layer made sparse without a choice between masks and ridges."""
        if isinstance(pairs, RowPairs):
            return self.wide(layer, pairs).sparse(pattern)[0]
        problem = Problem.of(pairs.fit, layer.fit(), shifts=layer.can_shift)
        return self.left(problem, next(self.masks(layer, problem, [pattern])))

    def _mask(self, layer: Layer, problem: Problem, pattern: Pattern, held: Sums) -> Mask:
        """The mask on which what is left errs least."""
        seen = self._seen(layer, problem, pattern)
        tried = list(self._chosen(seen, [pattern]))
        if self.method == "obs":
            tried.append(seen.back(masks.one_by_one(seen.w, seen.h, pattern)))
        if len(tried) == 1:
            return tried[0]
        return min(tried, key=lambda mask: self.left(problem, mask).relative_error(held))

    def left(self, problem: Problem, mask: Mask) -> Fit:
        """What is left on a mask."""
        return problem.masked(mask, _DAMP) if self.refit else _masked(problem.start, mask)

    def masks(self, layer: Layer, problem: Problem, patterns: Sequence[Pattern]) -> Iterator[Mask]:
        """A mask for each of some patterns of one kind."""
        return self._chosen(self._seen(layer, problem, patterns[0]), patterns)

    def _chosen(self, seen: _Seen, patterns: Sequence[Pattern]) -> Iterator[Mask]:
        if self.method == "obs":
            found = masks.alternating(seen.w, seen.h, patterns)
        elif self.method == "energy":
            found = (masks.energy(seen.w, seen.h, pattern) for pattern in patterns)
        else:
            found = (masks.magnitude(seen.w, pattern) for pattern in patterns)
        return map(seen.back, found)

    def _seen(self, layer: Layer, problem: Problem, pattern: Pattern) -> _Seen:
        w = problem.dense(_DAMP).rows if self.refit else problem.start.rows
        h, _ = problem.damped(_DAMP)
        order = order_of(layer, pattern)
        return _Seen(w[:, :, order], h[:, order][:, :, order], np.argsort(order))


@dataclass(frozen=True)
class _Seen:
    """Weight and moments of a layer, columns in the order in which a pattern sees them.

    Attributes:
        w, h: as :class:`.Problem` has them, damped.
        undone: the order that undoes it.
    """

    w: Doubles
    h: Doubles
    undone: NDArray[np.int64]

    def back(self, mask: Mask) -> Mask:
        """A mask in the layer's own order."""
        return mask[:, :, self.undone]


def order_of(layer: Layer, pattern: Pattern) -> NDArray[np.int64]:
    """The order of a layer's columns in which a pattern sees them."""
    return along_channels(layer.columns, layer.kernel if isinstance(pattern, Groups) else 1)


def unfitted(layer: Layer, pattern: Pattern) -> Sparse:
    """A layer of whose inputs nothing is known: its largest weights; the error is that of the weights."""
    start = layer.fit()
    order = order_of(layer, pattern)
    mask = np.zeros(start.rows.shape, bool)
    mask[:, :, order] = masks.magnitude(start.rows[:, :, order], pattern)
    lost = np.square(start.rows[~mask]).sum() / max(np.square(start.rows).sum(), np.finfo(float).tiny)
    return Sparse(_masked(start, mask), float(lost))


def _masked(start: Fit, mask: Mask | None) -> Fit:
    return start if mask is None else replace(start, rows=np.where(mask, start.rows, 0.0))


def _solved(problem: Problem, mask: Mask | None, ridge: float) -> Fit:
    return problem.dense(ridge) if mask is None else problem.masked(mask, ridge)
