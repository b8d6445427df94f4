"""Integers and biases of the layers, fitted to what the layers see on the calibration samples.

Per layer with second moments M = Σ x·xᵀ of its inputs: scales that minimize the error weighted by the
diagonal of M, integers by rounding with error feedback on M, and a bias that takes the mean of the remaining
error back: b − (Ŵ − W)·E(x).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.activations import Collector, Request
from graphopt.model import Model
from graphopt.runtime.moments import Gram
from graphopt_passes.quantize.bias_correction import corrected_bias, mean_shift
from graphopt_passes.quantize.consumers import moments_of
from graphopt_passes.quantize.placement import Part, Placement
from graphopt_passes.quantize.rounding import feedback
from graphopt_passes.quantize.scheme import Array, IntegerWeight
from graphopt_passes.quantize.weights import clipped, from_rows, rounded, rows

# Beyond this the moments take a gigabyte and their factorization minutes.
MOST_COLUMNS = 8192


@dataclass
class Fitted:
    """Weights and biases by part."""

    weights: dict[str, IntegerWeight] = field(default_factory=dict)
    biases: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def nearest(placement: Placement, names: Collection[str], bits: int) -> Fitted:
    """Rounding to nearest on the scale of the largest weight of each channel, biases as they are."""
    found = Fitted()
    for part in _layers(placement, names):
        found.weights[part.name] = rounded(_weight(part), part.axis, bits).kept(placement.run.spill)
    return found


def fitted(  # noqa: PLR0913, PLR0917 - what it computes from
    model: Model,
    placement: Placement,
    names: Collection[str],
    collector: Collector,
    samples: Iterable[Mapping[str, Any]],
    bits: int,
) -> Fitted:
    """Fit the named layers, as their moments come in; those without moments are rounded to nearest."""
    found = Fitted()
    for part, moments in _moments(model, _layers(placement, names), collector, samples):
        weight = _fit(part, moments, bits)
        found.weights[part.name] = weight.kept(placement.run.spill)
        shift = mean_shift(rows(_weight(part), part.axis), rows(weight.real(), part.axis), moments.mean)
        if part.has_bias:
            bias = g.array(part.bias)
            found.biases[part.name] = corrected_bias(bias, np.zeros(shift.shape), shift)
    rest = [name for name in names if name not in found.weights]
    found.weights.update(nearest(placement, rest, bits).weights)
    return found


def _fit(part: Part, moments: Gram, bits: int) -> IntegerWeight:
    weight = _weight(part)
    scales = clipped(weight, part.axis, moments.energy, bits).scales
    matrix = rows(weight, part.axis)
    data = feedback(matrix, scales, _centred(moments), bits=bits)
    return IntegerWeight(from_rows(data, weight, part.axis), scales, part.axis)


def _centred(moments: Gram) -> NDArray[np.float64]:
    """Second moments about the mean: the bias takes the rest."""
    outer = np.einsum("gi,gj->gij", moments.mean, moments.mean) * moments.count
    result: NDArray[np.float64] = moments.products - outer
    return result


def _moments(
    model: Model, parts: Iterable[Part], collector: Collector, samples: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Part, Gram]]:
    wanted: dict[Request, list[Part]] = {}
    count = length_hint(samples) or 1
    for part in parts:
        kind, value = moments_of(part.node, count), part.node.inputs[0]
        if kind is not None and value is not None and kind.columns <= MOST_COLUMNS:
            wanted.setdefault(Request(value.name or "", kind), []).append(part)
    for statistics in collector.stream(model, wanted, samples):
        for request, found in statistics.found.items():
            assert isinstance(found, Gram)
            yield from ((part, found) for part in wanted[request])


def _layers(placement: Placement, names: Collection[str]) -> Iterator[Part]:
    for name in names:
        part = placement.parts[name]
        if part.weight is not None:
            yield part


def _weight(part: Part) -> Array:
    found = g.array(part.weight)
    assert found is not None
    return found
