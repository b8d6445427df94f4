"""equalize-channels: neighbours exchange scales until the ranges of their channels are alike.

    W₂∗f(W₁∗x + b) = (W₂·S)∗f((S⁻¹·W₁)∗x + S⁻¹·b)     for f(s·y) = s·f(y), s > 0

with one sᵢ per channel between two linear layers (cross-layer equalization, Nagel et al. 2019, §4.1). With
r₁ᵢ the range of channel i's weights in W₁ and r₂ᵢ in W₂, sᵢ = √(r₁ᵢ·r₂ᵢ)/r₂ᵢ makes both √(r₁ᵢ·r₂ᵢ), so that a
scale for all channels fits each. Layers in a row are swept until nothing moves, on the ranges alone; then
every weight is rewritten once. A channel whose weights are tiny would get a huge bias, and that a huge range
of activations: no scaled bias may exceed the largest bias.

Every f that scales with its input may stand between (see :mod:`scaled <graphopt_passes.quantize.scaled>`).
Where layers meet in a sum they share s, and r₁ᵢ and r₂ᵢ are the largest of all that make and read channel i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.model import Model
from graphopt.pipeline import Pass, Run
from graphopt_passes.quantize.layers import Layer
from graphopt_passes.quantize.places import Member, Scaling, find_scalings, largest

Doubles = NDArray[np.float64]

_SWEEPS = 1000  # cheap: only ranges are touched
_STILL = 1e-4  # log₂ of a factor that ends the sweeps; what is left adds up along a row of layers
_LEAST = 0.05  # log₂ of a factor that is worth a rewrite


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Even out the ranges of the channels between two linear layers."""

    name: ClassVar[str] = "equalize-channels"

    def apply(self, model: Model, run: Run) -> bool:
        """Equalize all chains; returns whether any changed."""
        return bool(equalize(model, run))


def equalize(model: Model, run: Run) -> dict[str, Doubles]:
    """Equalize all layers of a model in place.

    Returns:
        The name of the value that a layer reads → what its channels were divided by, float64 [factors], of
        all that changed. All values between the layers that make it and this one were divided by the same.
    """
    found = [one for one in find_scalings(model, run, EqualizeChannels.name) if one.makers]
    admitted: list[tuple[Scaling, Doubles]] = []
    for scaling, factor in zip(found, _swept(found), strict=True):
        worth = np.abs(np.log2(factor)).max(initial=0.0) > _LEAST
        if worth and run.journal.admit(EqualizeChannels.name, scaling.name):
            admitted.append((scaling, factor))
    _rewrite(model, run, admitted)
    return {scaling.name: factor for scaling, factor in admitted}


class _Ranges:
    """The ranges of a layer's weights while the factors of its channels change."""

    def __init__(self, table: Doubles) -> None:
        self.table = table  # [groups, channels/groups, inputs/groups], 1 where a side takes part in nothing

    def channels(self) -> Doubles:
        return np.asarray(self.table.max(axis=2, initial=0.0).ravel())

    def inputs(self) -> Doubles:
        return np.asarray(self.table.max(axis=1, initial=0.0).ravel())

    def divide_channels(self, by: Doubles) -> None:
        self.table /= by.reshape(*self.table.shape[:2], 1)

    def multiply_inputs(self, by: Doubles) -> None:
        self.table *= by.reshape(len(self.table), 1, -1)


def _swept(scalings: list[Scaling]) -> list[Doubles]:
    """The factors of all once nothing moves any more."""
    ranges = _ranges(scalings)
    biases = [scaling.bias() for scaling in scalings]
    factors = [np.ones(scaling.width) for scaling in scalings]
    for _ in range(_SWEEPS):
        moved = 0.0
        for index, scaling in enumerate(scalings):
            step = _swap(scaling, ranges, biases[index])
            biases[index] /= step
            factors[index] *= step
            moved = max(moved, float(np.abs(np.log2(step)).max(initial=0.0)))
        if moved < _STILL:
            break
    return factors


def _ranges(scalings: list[Scaling]) -> dict[ir.Node, _Ranges]:
    makers = {member.layer.node for scaling in scalings for member in scaling.makers}
    readers = {member.layer.node for scaling in scalings for member in scaling.readers}
    return {
        node: _Ranges(layer.magnitudes(channels=node in makers, inputs=node in readers))
        for node, layer in _layers(scalings).items()
    }


def _layers(scalings: list[Scaling]) -> dict[ir.Node, Layer]:
    """The layers; as a reader, one knows which columns are one channel."""
    makers = {member.layer.node: member.layer for scaling in scalings for member in scaling.makers}
    return makers | {member.layer.node: member.layer for scaling in scalings for member in scaling.readers}


def _swap(scaling: Scaling, ranges: dict[ir.Node, _Ranges], bias: Doubles) -> Doubles:
    """Divide by one step what makes the channels, and multiply what reads them."""

    def most(members: tuple[Member, ...], side: Callable[[_Ranges], Doubles]) -> Doubles:
        found = [largest(side(ranges[one.layer.node]), one.units, scaling.width) for one in members]
        return np.asarray(np.max(found, axis=0))

    step = _step(most(scaling.makers, _Ranges.channels), most(scaling.readers, _Ranges.inputs), bias)
    for member in scaling.makers:
        ranges[member.layer.node].divide_channels(member.factors(step))
    for member in scaling.readers:
        ranges[member.layer.node].multiply_inputs(member.factors(step))
    return step


def _step(before: Doubles, after: Doubles, bias: Doubles) -> Doubles:
    """√(r₁·r₂)/r₂ = √(r₁/r₂), 1 for channels without weights, and never a bias above the largest."""
    live = (before > 0) & (after > 0) & np.isfinite(before) & np.isfinite(after)
    step = np.sqrt(np.divide(before, after, out=np.ones_like(before), where=live))
    most = bias.max(initial=0.0)
    return np.maximum(step, bias / most) if 0 < most < np.inf else step


def _rewrite(model: Model, run: Run, admitted: list[tuple[Scaling, Doubles]]) -> None:
    """Scale every weight once, by the factors on both of its sides, and the constants between."""
    channels: dict[ir.Node, Doubles] = {}
    inputs: dict[ir.Node, Doubles] = {}
    for scaling, factor in admitted:
        channels |= {one.layer.node: 1 / one.factors(factor) for one in scaling.makers}
        inputs |= {one.layer.node: one.factors(factor) for one in scaling.readers}
        scaling.divide_constants(model, run, factor)
    for node, layer in _layers([scaling for scaling, _ in admitted]).items():
        ones = np.ones(layer.channels), np.ones(layer.inputs)
        layer.scale(model, run, channels.get(node, ones[0]), inputs.get(node, ones[1]))
