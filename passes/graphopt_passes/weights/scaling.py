"""Channels scaled before weights are rounded, so that those of large inputs lose less (AWQ, Lin et al. 2023).

    x·W = (x/s)·(s·W)        sⱼ = E(xⱼ²)^(α/2), divided by √(max s·min s)

A block has one step for all of its numbers, so that a larger sⱼ leaves the step as it is, unless wⱼ is its
largest, and makes the error that xⱼ meets smaller. α is chosen by the error at the outputs of all layers that
read x, with weights rounded to nearest:

    Σₙ E(Σⱼ xⱼ/sⱼ·eₙⱼ)²        e = round(s·W) − s·W

as far as mean and variance of each channel tell, see :class:`Inputs <graphopt_passes.weights.blocks.Inputs>`.
The paper runs samples for each α, and takes the mean of |x| for the size of a channel. No node is added: s is
taken up by what makes x (:mod:`graphopt_passes.quantize.scaled`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt_passes.quantize.calibrate import Gather
from graphopt_passes.quantize.layers import blocks
from graphopt_passes.quantize.scheme import Array
from graphopt_passes.quantize.smooth import Aim, Seen, smooth
from graphopt_passes.quantize.smoothing import seen_by_layers
from graphopt_passes.weights.blocks import Inputs

Doubles = NDArray[np.float64]

NAME = "scale-channels"
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WORTH = 0.99  # part of the error that must be left at most
LEAST = 1e-4  # of the largest channel: what samples show of smaller ones says nothing about others


@dataclass(frozen=True)
class Scaled:
    """A model with scaled channels.

    Attributes:
        model: computes the same.
        inputs: of layers, by value name.
        values: the names of those that were scaled.
    """

    model: Model
    inputs: Mapping[str, Inputs]
    values: frozenset[str]


def scaled(model: Model, run: Run, gather: Gather, rounded: Callable[[Array], Array]) -> Scaled:
    """A copy whose channels are scaled where that leaves less of the error.

    Args:
        model: not changed.
        run: its record.
        gather: what is asked of the samples.
        rounded: what rows [channels, columns] of a weight become.
    """
    seen = seen_by_layers(model, gather)
    copy = model.clone()
    factors = smooth(copy, run, seen, Aim(NAME, _factors, _size, _Error(rounded), ALPHAS, WORTH))
    inputs = {name: _inputs(one, factors.get(name, np.ones(1))) for name, one in seen.items()}
    return Scaled(copy, inputs, frozenset(factors))


@dataclass(frozen=True)
class _Error:
    """The error of the outputs of layers; see the module."""

    rounded: Callable[[Array], Array]

    def __call__(self, seen: Seen, weights: Sequence[Array], factor: Doubles) -> float:
        return sum(self._of(part, seen, factor) for whole in weights for part in blocks(whole))

    def _of(self, w: Array, seen: Seen, factor: Doubles) -> float:
        groups, channels, _, elements = w.shape
        large = (w * factor.reshape(groups, 1, -1, 1)).astype(np.float32)
        rows = large.reshape(groups * channels, -1)
        wrong = np.asarray(self.rounded(rows) - rows, np.float64).reshape(groups, channels, -1)
        known = _inputs(seen, factor).repeated(elements, groups)
        return float(known.error(wrong).sum())


def _inputs(seen: Seen, factor: Doubles) -> Inputs:
    """x/s, where each factor is that of some neighbours."""
    by = np.repeat(factor, len(seen.mean) // len(factor))
    mean, energy = (np.asarray(one, np.float64) for one in (seen.mean, seen.energy))
    return Inputs(np.maximum(energy - mean**2, 0) / by**2, mean / by)


def _size(seen: Seen) -> Doubles:
    return np.sqrt(np.asarray(seen.energy, np.float64))


def _factors(size: Doubles, _: Doubles, alpha: float) -> Doubles:
    """All 1 if all channels are always 0."""
    found = np.maximum(size, LEAST * size.max() or 1.0) ** alpha
    return np.asarray(found / np.sqrt(found.max() * found.min()))
