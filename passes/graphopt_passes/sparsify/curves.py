"""How much a layer loses at each density, and what that does to the outputs of the model.

A layer's own error, on samples that nothing was fitted to, is found at some densities for some of its
channels. It says how the error grows, not how much it matters: noise at the outputs of the model is measured
once for each layer, at one density, and taken to grow as the error does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from graphopt.runtime.pairs import RowPairs, Shares, Sums
from graphopt_passes.prune.allocation import Choice
from graphopt_passes.refit.recurrent import Layer
from graphopt_passes.refit.solve import Fit, Problem
from graphopt_passes.sparsify.fitting import Fitter, unfitted
from graphopt_passes.sparsify.patterns import Anywhere

DENSITIES = (0.8, 0.6, 0.45, 0.3, 0.2, 0.15, 0.1, 0.06, 0.03)
"""At which errors are found, descending."""

_STEP = 0.01  # of the densities to choose from
_NUMBERS = 1 << 24  # of moments times channels that are worked on
_FEWEST = 8  # channels
_LEAST = 1e-9  # error: float32 has no smaller one


def curve(fitter: Fitter, layer: Layer, pairs: Shares | RowPairs) -> dict[float, float]:
    """The error at each of :data:`DENSITIES`, not falling as more is removed."""
    errors = (
        _rows_errors(fitter, layer, pairs) if isinstance(pairs, RowPairs) else _errors(fitter, layer, pairs)
    )
    known = (max(error, _LEAST) for error in errors)
    return dict(zip(DENSITIES, itertools.accumulate(known, max), strict=True))


def blind(layer: Layer) -> dict[float, float]:
    """The curve of a layer of whose inputs nothing is known."""
    return {density: max(unfitted(layer, Anywhere(density)).error, _LEAST) for density in DENSITIES}


def _rows_errors(fitter: Fitter, layer: Layer, pairs: RowPairs) -> list[float]:
    wide, every = fitter.wide(layer, pairs), max(layer.channels // _FEWEST, 1)
    return [wide.sparse(Anywhere(density), every)[1] for density in DENSITIES]


def _errors(fitter: Fitter, layer: Layer, pairs: Shares) -> list[float]:
    start, fit, held = _part(layer.fit(), pairs.fit, pairs.held)
    problem = Problem.of(fit, start, shifts=layer.can_shift)
    found = fitter.masks(layer, problem, [Anywhere(density) for density in DENSITIES])
    return [fitter.left(problem, mask).relative_error(held) for mask in found]


def choices(errors: Mapping[float, float], size: float, noise: float, at: float) -> Iterator[Choice[float]]:
    """The densities that a layer may have, in steps of 1 %.

    Args:
        errors: its curve.
        size: its share of all weights.
        noise: what it makes at the outputs at the density ``at``.
        at: one of the curve.
    """
    known = sorted(errors)
    logs = [math.log(errors[density]) for density in known]
    for density in np.arange(1 - _STEP, known[0] - _STEP / 2, -_STEP):
        grown = math.exp(float(np.interp(density, known, logs)) - math.log(errors[at]))
        if density > known[-1]:  # from there to a full weight, whose error is 0
            grown *= ((1 - density) / (1 - known[-1])) ** 2
        yield Choice(float(density), size * (1 - float(density)), noise * grown)


def _part(start: Fit, *sums: Sums) -> tuple[Fit, Sums, Sums]:
    """Some of the channels of each group."""
    groups, channels, columns = start.rows.shape
    most = max(_NUMBERS // (groups * columns**2), _FEWEST)
    some = slice(None, None, -(-channels // most))
    fit, held = (replace(one, xy=one.xy[:, :, some], y=one.y[:, some], yy=one.yy[:, some]) for one in sums)
    return Fit(start.rows[:, some], start.bias[:, some]), fit, held
