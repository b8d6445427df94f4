"""equalize-channels: neighbours exchange scales until the ranges of their channels are alike.

    W₂∗f(W₁∗x + b) = (W₂·S)∗f((S⁻¹·W₁)∗x + S⁻¹·b)     for f(s·y) = s·f(y), s > 0

with one sᵢ per channel between two linear layers (cross-layer equalization, Nagel et al. 2019, §4.1). With
r₁ᵢ the range of channel i's weights in W₁ and r₂ᵢ in W₂, sᵢ = √(r₁ᵢ·r₂ᵢ)/r₂ᵢ makes both √(r₁ᵢ·r₂ᵢ), so that a
scale for all channels fits each. Layers in a row are swept until nothing moves, on the ranges alone; then
every weight is rewritten once. A channel whose weights are tiny would get a huge bias, and that a huge range
of activations: no scaled bias may exceed the largest bias.

Every f of one channel at a time that scales with its input may stand between: Relu, LeakyRelu, PRelu,
pooling, an added constant per channel (which is scaled like a bias), and a Flatten before a Gemm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.model import Model
from graphopt.pipeline import Pass, Run
from graphopt_passes.quantize.chains import Chain, find_chains
from graphopt_passes.quantize.layers import Layer

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
    """Equalize all chains of a model in place.

    Returns:
        The name of the first layer's output → what its channels were divided by, float64 [channels], of all
        chains that changed. What follows up to the second layer was divided by the same.
    """
    chains = find_chains(model, run, EqualizeChannels.name)
    factors = _swept(chains)
    admitted: list[tuple[Chain, Doubles]] = []
    for chain, factor in zip(chains, factors, strict=True):
        worth = np.abs(np.log2(factor)).max(initial=0.0) > _LEAST
        if worth and run.journal.admit(EqualizeChannels.name, chain.name):
            admitted.append((chain, factor))
    _rewrite(model, run, admitted)
    return {chain.name: factor for chain, factor in admitted}


class _Ranges:
    """The ranges of a layer's weights while the factors of its channels change."""

    def __init__(self, table: Doubles) -> None:
        self.table = table  # [groups, channels/groups, inputs/groups], 1 where a side takes part in no chain

    def channels(self) -> Doubles:
        return np.asarray(self.table.max(axis=2, initial=0.0).ravel())

    def inputs(self) -> Doubles:
        return np.asarray(self.table.max(axis=1, initial=0.0).ravel())

    def divide_channels(self, by: Doubles) -> None:
        self.table /= by.reshape(*self.table.shape[:2], 1)

    def multiply_inputs(self, by: Doubles) -> None:
        self.table *= by.reshape(len(self.table), 1, -1)


def _swept(chains: list[Chain]) -> list[Doubles]:
    """The factors of all chains once nothing moves any more."""
    first, second = ({chain.first.node for chain in chains}, {chain.second.node for chain in chains})
    ranges = {
        node: _Ranges(layer.magnitudes(channels=node in first, inputs=node in second))
        for node, layer in _layers(chains).items()
    }
    biases = [chain.bias() for chain in chains]
    factors = [np.ones(chain.first.channels) for chain in chains]
    for _ in range(_SWEEPS):
        moved = 0.0
        for index, chain in enumerate(chains):
            before, after = ranges[chain.first.node], ranges[chain.second.node]
            step = _step(before.channels(), after.inputs(), biases[index])
            before.divide_channels(step)
            after.multiply_inputs(step)
            biases[index] /= step
            factors[index] *= step
            moved = max(moved, float(np.abs(np.log2(step)).max(initial=0.0)))
        if moved < _STILL:
            break
    return factors


def _layers(chains: list[Chain]) -> dict[ir.Node, Layer]:
    """The layers of the chains; as a second layer, one knows which inputs make up a channel."""
    first = {chain.first.node: chain.first for chain in chains}
    return first | {chain.second.node: chain.second for chain in chains}


def _step(before: Doubles, after: Doubles, bias: Doubles) -> Doubles:
    """√(r₁·r₂)/r₂ = √(r₁/r₂), 1 for channels without weights, and never a bias above the largest."""
    live = (before > 0) & (after > 0) & np.isfinite(before) & np.isfinite(after)
    step = np.sqrt(np.divide(before, after, out=np.ones_like(before), where=live))
    largest = bias.max(initial=0.0)
    return np.maximum(step, bias / largest) if 0 < largest < np.inf else step


def _rewrite(model: Model, run: Run, admitted: list[tuple[Chain, Doubles]]) -> None:
    """Scale every weight once, by the factors on both of its sides, and the constants between."""
    channels: dict[ir.Node, Doubles] = {}
    inputs: dict[ir.Node, Doubles] = {}
    for chain, factor in admitted:
        channels[chain.first.node], inputs[chain.second.node] = 1 / factor, factor
        for shift in chain.shifts:
            shift.divide(model, run, factor)
    for node, layer in _layers([chain for chain, _ in admitted]).items():
        ones = np.ones(layer.channels), np.ones(layer.inputs)
        layer.scale(model, run, channels.get(node, ones[0]), inputs.get(node, ones[1]))
