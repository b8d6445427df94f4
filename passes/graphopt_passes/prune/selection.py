"""In which order the units of a group go, and what has been lost after each: the ways of ``--select``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.runtime.accumulators import Doubles
from graphopt_passes.prune.readers import Columns, Reader

_ROUNDS = 64  # units of wide groups go several at a time
_LEAST = 1e-12
_SWEEPS = 50
_PATH = 40  # values of λ on the LASSO's path


@dataclass(frozen=True)
class Order:
    """An order.

    Attributes:
        units: all of a group, the first to go first.
        lost: share of the readers' outputs that is lost once so many are gone, the mean over all readers,
            float64 [width + 1].
    """

    units: Columns
    lost: Doubles

    def kept(self, count: int) -> Columns:
        """The units that stay last, ascending."""
        return np.sort(self.units[len(self.units) - count :])


def ordered(readers: Sequence[Reader], norms: Doubles, method: str) -> Order:
    """The order of a method.

    Args:
        readers: layers that read the group.
        norms: of the weights that make each unit, float64 [width]: they decide if there is no reader.
        method: ``obs``, ``lasso``, ``energy``, ``l2`` or ``l1``.
    """
    if not readers or method in ("l1", "l2"):
        return _by(norms, _static(readers) if readers else norms)
    if method == "energy":
        return _by(_static(readers), _static(readers))
    if method == "lasso":
        return _by(_lasso(readers), _static(readers))
    return _surgeon(readers, len(norms))


def _by(scores: Doubles, costs: Doubles) -> Order:
    """Those with the lowest scores first; what they lose is taken to add up."""
    units = np.argsort(scores, kind="stable")
    total = float(costs.sum()) or 1.0
    lost = np.concatenate([[0.0], np.cumsum(costs[units])]) / total
    return Order(units, np.maximum(lost, _LEAST * np.arange(len(lost))))


def _static(readers: Sequence[Reader]) -> Doubles:
    """What each unit's own part of the outputs varies, as a share."""
    found: Doubles = np.mean([reader.parts() for reader in readers], axis=0)
    return found


def _surgeon(readers: Sequence[Reader], width: int) -> Order:
    """Always those that the others can make up for best, all readers together."""
    left, gone, lost = np.arange(width), list[Columns](), [0.0]
    step = -(-width // _ROUNDS)
    while len(left) > step:
        costs = np.maximum(np.mean([reader.costs(left) for reader in readers], axis=0), _LEAST)
        chosen = np.argsort(costs, kind="stable")[:step]
        for reader in readers:
            reader.remove(left[chosen])
        lost += (lost[-1] + np.cumsum(costs[chosen])).tolist()
        gone.append(left[chosen])
        left = np.delete(left, chosen)
    rest = np.maximum(np.mean([reader.costs(left) for reader in readers], axis=0), _LEAST)
    lost += (lost[-1] + np.cumsum(np.sort(rest))).tolist()
    gone.append(left[np.argsort(rest, kind="stable")])
    return Order(np.concatenate(gone), np.array(lost))


def _lasso(readers: Sequence[Reader]) -> Doubles:
    """The λ up to which a unit is part of min ½‖Σ βᵤyᵤ − y‖² + λ‖β‖₁, yᵤ being its part of the outputs.

    With the products G of all yᵤ that is ½βᵀGβ − βᵀG·1 + λ‖β‖₁ (He et al. 2017).
    """
    g = np.sum([reader.products() for reader in readers], axis=0)
    target, diagonal = g.sum(axis=1), np.maximum(np.diagonal(g), _LEAST)
    beta, last = np.zeros(len(g)), np.zeros(len(g))
    most = float(np.abs(target).max()) or 1.0
    for strength in most * np.geomspace(1.0, 1e-4, _PATH):
        for _ in range(_SWEEPS):
            before = beta.copy()
            for unit in range(len(g)):
                rest = target[unit] - g[unit] @ beta + diagonal[unit] * beta[unit]
                beta[unit] = np.sign(rest) * max(abs(rest) - strength, 0.0) / diagonal[unit]
            if np.abs(beta - before).max() < 1e-6:
                break
        last = np.where((beta != 0) & (last == 0), strength, last)
    scores: Doubles = last + _LEAST * np.abs(target)
    return scores
