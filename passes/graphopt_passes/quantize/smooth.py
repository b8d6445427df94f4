"""SmoothQuant: what makes an activation hands the size of its channels to the layers that read it.

    x = n·γ + β:    x·W = (n·(γ/s) + β/s)·(s·W)

with one sⱼ per channel, sⱼ = max|Xⱼ|^α / max|Wⱼ|^(1−α) (Xiao et al. 2023, eq. 4), so that the size of a few
channels of large activations, which one scale for the tensor cannot serve, moves into the weights, which
have a scale per output channel. All layers that read the value (Q, K and V) share s; max|Wⱼ| is over all of
them. It costs nothing at run time, and the float model computes the same.

The channels may come from a normalization or from other layers, through whatever scales with its input (see
:mod:`scaled <graphopt_passes.quantize.scaled>`): then 1/s goes into those layers' rows, whose own scales take
it up. So with scales per channel this is equalization by what was seen, not by weights.

How far to go, α, is chosen by the error that is to be expected at the readers' outputs, with weights as they
will be rounded and activations rounded on a step Δ, of error Δ²/12 but no larger than they are:

    Σₙ Σₖ E(x̂ₖ²)·Δwₙₖ² + min(Δ²/12, E(x̂ₖ²))·ŵₙₖ²     x̂ = x/s, ŵ = s·w

Where several values share s, their errors count relative to what they are without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt_passes.quantize.layers import blocks
from graphopt_passes.quantize.places import Scaling, Units, find_scalings, largest
from graphopt_passes.quantize.scheme import Array
from graphopt_passes.quantize.weights import rounded

Doubles = NDArray[np.float64]

_LEVELS = 255  # steps of an activation between its least and its largest number


@dataclass(frozen=True)
class Seen:
    """What calibration saw of a value, channel by channel: along its last axis, or axis 1 before a Conv.

    Attributes:
        low: min x, [channels].
        high: max x, [channels].
        energy: mean of x², [channels].
        mean: of x, [channels].
    """

    low: Array
    high: Array
    energy: Array
    mean: Array

    @property
    def largest(self) -> Doubles:
        """max |x|, [channels]."""
        return np.maximum(np.abs(np.asarray(self.low, np.float64)), np.abs(np.asarray(self.high, np.float64)))

    def of(self, channels: int) -> Seen:
        """The same of this many channels, of which each had several neighbours before a Flatten."""
        all_ = (self.low, self.high, self.energy, self.mean)
        low, high, energy, mean = (np.reshape(x, (channels, -1)) for x in all_)
        return Seen(low.min(axis=1), high.max(axis=1), energy.mean(axis=1), mean.mean(axis=1))

    def step(self, factor: Doubles) -> float:
        """The step of a grid that holds 0 and all x/s."""
        low, high = (self.low / factor).min(initial=0.0), (self.high / factor).max(initial=0.0)
        return float(high - low) / _LEVELS


Error = Callable[[Seen, Sequence[Array], Doubles], float]
"""The expected squared error of all outputs, from what was seen of a value, the weights that read it as
[groups, channels/groups, inputs/groups, elements] each, and factors, [channels]."""


@dataclass(frozen=True)
class Aim:
    """What channels are scaled for.

    Attributes:
        name: the rule's in the journal.
        factors: s from the sizes of channels, those of the weights that read them, and α.
        size: of each channel that was seen.
        error: of the outputs, once what is scaled is rounded.
        alphas: to try, from 0 (all is left in the activations) to 1 (all moves into the weights).
        worth: the part of the error that must be left at most.
    """

    name: str
    factors: Callable[[Doubles, Doubles, float], Doubles]
    size: Callable[[Seen], Doubles]
    error: Error
    alphas: Sequence[float]
    worth: float


@dataclass(frozen=True)
class Reading:
    """A value that layers read.

    Attributes:
        seen: of its channels, [channels].
        weights: of all that read it, each as [groups, channels/groups, inputs/groups, elements].
        units: the number of the factor of each channel.
    """

    seen: Seen
    weights: Sequence[Array]
    units: Units

    def sizes(self, width: int) -> Doubles:
        """The largest |w| that each factor multiplies, [width]."""
        found = np.max([np.abs(b).max(axis=(1, 3)).ravel() for w in self.weights for b in blocks(w)], axis=0)
        return largest(found.astype(np.float64), self.units, width)

    def error(self, expected: Error, factor: Doubles) -> float:
        """The expected squared error of all outputs with factors, [width]."""
        return expected(self.seen, self.weights, np.append(factor, 1.0)[self.units])


def smooth(model: Model, run: Run, seen: Mapping[str, Seen], aim: Aim) -> dict[str, Doubles]:
    """Smooth every value that was seen and can be, where that lowers the expected error by enough.

    The model is changed in place. What was seen of a smoothed value is no longer true: this is done once.
    Smoothed channels all reach near the ends of the range, so with few rows of data more of them saturate on
    unseen ones than before: leave some room in the range, or check on held-out data, value by value.

    Returns:
        The name of each value that layers read and that changed → what its channels were divided by, float64
        [channels].
    """
    done: dict[str, Doubles] = {}
    for scaling in find_scalings(model, run, aim.name):
        readings = _readings(scaling, seen)
        if not readings:
            continue
        factor = best_factor(list(readings.values()), scaling.width, aim)
        if factor is None:
            run.journal.refuse(aim.name, f"'{scaling.name}'", "the expected error is not lower")
        elif run.journal.admit(aim.name, scaling.name):
            scaling.divide(model, run, factor)
            done |= {name: np.append(factor, 1.0)[found.units] for name, found in readings.items()}
    return done


def _readings(scaling: Scaling, seen: Mapping[str, Seen]) -> dict[str, Reading]:
    """What was seen of each value that layers read; nothing unless all were seen."""
    found: dict[str, Reading] = {}
    for member in scaling.readers:
        value = member.layer.node.inputs[0]
        name = (value and value.name) or ""
        if name not in seen:
            return {}
        weight = member.layer.matrices(member.layer.weight())
        others = found[name].weights if name in found else ()
        found[name] = Reading(seen[name].of(member.layer.inputs), (*others, weight), member.units)
    return found


def best_factor(readings: Sequence[Reading], width: int, aim: Aim) -> Doubles | None:
    """The s of the α with the least expected error, or ``None`` if none is worth it.

    Args:
        readings: the values that are divided by s.
        width: the number of factors.
        aim: what they are for.

    Returns:
        float64 [width].
    """
    sizes = np.max([one.sizes(width) for one in readings], axis=0)
    seen = np.max([largest(aim.size(one.seen), one.units, width) for one in readings], axis=0)
    found = [aim.factors(seen, sizes, alpha) for alpha in aim.alphas]
    before = [one.error(aim.error, np.ones(width)) for one in readings]
    errors = [_ratio([one.error(aim.error, factor) for one in readings], before) for factor in found]
    best = int(np.argmin(errors))
    return found[best] if errors[best] < aim.worth else None


def _ratio(after: Sequence[float], before: Sequence[float]) -> float:
    """The mean of what is left of each error."""
    left = [new / old if old else 1.0 for new, old in zip(after, before, strict=True)]
    return sum(left) / len(left)


def expected_error(seen: Seen, weights: Sequence[Array], factor: Doubles) -> float:
    """The expected squared error of all outputs at one position, once x/s and s·W are int8."""
    energy = np.asarray(seen.energy, np.float64) / factor**2
    noise = np.minimum(seen.step(factor) ** 2 / 12, energy)  # what is below the step becomes 0
    total = 0.0
    for w in (block for whole in weights for block in blocks(whole)):
        scaled = (w * factor.reshape(len(w), 1, -1, 1)).astype(np.float32)
        rows = scaled.reshape(scaled.shape[0] * scaled.shape[1], -1)
        wrong = (rounded(rows, 0).real() - rows).reshape(scaled.shape)
        total += float(np.square(wrong).sum(axis=(1, 3), dtype=np.float64).ravel() @ energy)
        total += float(np.square(scaled).sum(axis=(1, 3), dtype=np.float64).ravel() @ noise)
    return total


def _shared(largest: Doubles, sizes: Doubles, alpha: float) -> Doubles:
    """max|X|^α / max|W|^(1−α); 1 for channels that are always 0 or have no weights."""
    live = (largest > 0) & (sizes > 0)
    result = np.ones_like(sizes)
    result[live] = largest[live] ** alpha / sizes[live] ** (1 - alpha)
    return result


INT8 = Aim(
    "smooth-activations",
    _shared,
    lambda seen: seen.largest,
    expected_error,
    (0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0),
    worth=0.9,
)
"""Activations and weights are int8."""
