"""Rounds weights to blocks of integers, by the method that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from graphopt.activations import Request
from graphopt.model import Model
from graphopt.precision import Task
from graphopt.rewrite import RefusedError
from graphopt.runtime.accumulators import Doubles
from graphopt.runtime.moments import Gram
from graphopt_passes.quantize.consumers import moments_of
from graphopt_passes.quantize.fit import MOST_COLUMNS
from graphopt_passes.quantize.layers import Layer
from graphopt_passes.quantize.scheme import Array
from graphopt_passes.quantize.shares import Shares
from graphopt_passes.weights.blocks import (
    FINE_CLIPS,
    WHOLE,
    Blocked,
    Inputs,
    nearest,
    parts,
    prefers_zeros,
)
from graphopt_passes.weights.fitting import fitted
from graphopt_passes.weights.forms import Packed
from graphopt_passes.weights.half_quadratic import half_quadratic
from graphopt_passes.weights.in_order import Rounded, fitted_in_order
from graphopt_passes.weights.places import Place, places
from graphopt_passes.weights.scaling import Scaled, scaled

BLOCKS = {4: 32, 8: 128}
"""Bits → numbers of a block unless the user says: smaller blocks cost memory and serve only few levels."""

_DAMP = 0.1  # of moments: less of it fits the samples better, and others worse


@dataclass(frozen=True)
class Rounder:
    """Rounds the weights of one float model.

    Attributes:
        task: what to work with.
        model: the float model.
        symmetric: whether the target knows no zero points.
        inputs: of layers, by value name, where they are known.
    """

    task: Task
    model: Model
    symmetric: bool
    inputs: Mapping[str, Inputs] = field(default_factory=dict)

    @cached_property
    def shares(self) -> Shares:
        """Samples to fit weights to, and to choose between weights."""
        return Shares.of(self.task)

    def scaled(self, bits: int) -> Scaled:
        """The model with channels scaled for weights of so many bits."""
        self.task.progress("scaling channels")
        gather = partial(self.task.collector.collect, self.model, samples=self.shares.fitting)
        block = self.task.options.block_size or BLOCKS[bits]

        def rounded(rows: Array) -> Array:
            try:
                return nearest(rows, bits, block, symmetric=self.symmetric or None).real()
            except ValueError:  # NaN or infinity: it will stay as it is
                return rows

        return scaled(self.model, self.task.new_run(), gather, rounded)

    def packed(self, bits: Mapping[str, int], method: str) -> Iterator[tuple[str, Packed]]:
        """The named weights one after the other, as they are done, but not those with NaN or infinity.

        Args:
            bits: 4 or 8, by the weight's name.
            method: ``nearest``, ``hqq``, or ``gptq`` or ``awq``, which fall back to ``hqq`` for what is no
                product of known inputs.
        """
        run = self.task.new_run()
        found = {place.name: place for place in places(self.model, run) if place.name in bits}
        if method == "gptq":
            for name, weight, shift in self._in_order(found, bits):
                del found[name]
                yield name, replace(Packed.of(weight, "gptq", run.spill), shift=shift)
            for place, moments in self._moments(found):
                try:
                    weight = self._fit(place, place.rows(), moments.products[0], bits[place.name])
                except ValueError:  # NaN or infinity: left to what needs no samples, which says so
                    continue
                del found[place.name]
                yield place.name, Packed.of(weight, "gptq", run.spill)
        for done, place in enumerate(found.values()):
            self.task.progress("rounding weights", done, len(found))
            plain, how = self._round(place, bits[place.name], method)
            if plain is not None:
                yield place.name, Packed.of(plain, how, run.spill)

    def _block(self, place: Place, bits: int) -> int:
        return place.block(self.task.options.block_size or BLOCKS[bits])

    def _round(self, place: Place, bits: int, method: str) -> tuple[Blocked | None, str]:
        """To nearest at once, on grids cut off for known inputs, or on the better of two others: cut off for
        weights alone, and half-quadratic.
        """
        rows, block = place.rows(), self._block(place, bits)
        inputs = self._inputs(place) if method == "awq" else None
        clips = WHOLE if method == "nearest" else FINE_CLIPS
        try:
            plain = nearest(rows, bits, block, clips, symmetric=self.symmetric or None, inputs=inputs)
        except ValueError:  # NaN or infinity, which no grid holds
            return None, ""
        if method == "nearest" or inputs is not None:
            return plain, method
        other = half_quadratic(rows, bits, block, symmetric=plain.grid.symmetric)
        return (other, "hqq") if _error(rows, other) < _error(rows, plain) else (plain, "nearest")

    def _inputs(self, place: Place) -> Inputs | None:
        """What each column is multiplied with, where it is known and the same for all rows."""
        reader = place.readers[0]
        value = reader.node.inputs[0]
        known = self.inputs.get((value and value.name) or "")
        if known is None or reader.index != 1:
            return None
        try:
            layer = Layer.of(reader.node)
        except RefusedError:
            return None
        if layer.groups > 1 or len(known.spread) != layer.inputs:
            return None
        return known.repeated(place.shape[1] // layer.inputs)

    def _in_order(self, found: Mapping[str, Place], bits: Mapping[str, int]) -> Iterator[Rounded]:
        """The weights that one layer reads, each fitted to what the rounded layers before it give."""

        def fit(name: str, rows: Array, moments: Doubles) -> Blocked:
            return self._fit(found[name], rows, moments, bits[name])

        fits = {name: fit for name, place in found.items() if _request(place) is not None}
        run, collector = self.task.new_run(), self.task.collector
        return fitted_in_order(self.model, run, collector, self.shares.fitting, fits)

    def _fit(self, place: Place, rows: Array, moments: Doubles, bits: int) -> Blocked:
        block = self._block(place, bits)
        symmetric = self.symmetric or not prefers_zeros(rows, bits, block)
        return fitted(rows, moments, bits, block, symmetric=symmetric, damp=_DAMP)

    def _moments(self, found: Mapping[str, Place]) -> Iterator[tuple[Place, Gram]]:
        """The second moments of what each weight is multiplied with, a few at a time."""
        wanted: dict[Request, list[Place]] = {}
        for place in found.values():
            request = _request(place)
            if request is not None:
                wanted.setdefault(request, []).append(place)
        for statistics in self.task.collector.stream(self.model, wanted, self.shares.fitting):
            for one, moments in statistics.found.items():
                assert isinstance(moments, Gram)
                yield from ((place, moments) for place in wanted[one])


def _request(place: Place) -> Request | None:
    """The moments that a weight needs: those of the one input that all its columns meet."""
    reader = place.readers[0]
    kind, value = moments_of(reader.node), reader.node.inputs[0]
    if len(place.readers) > 1 or reader.index != 1 or kind is None or value is None:
        return None
    fits = kind.columns == place.shape[1] <= MOST_COLUMNS and len(kind.start().total) == 1
    return Request(value.name or "", kind) if fits else None


def _error(rows: Array, weight: Blocked) -> float:
    """Σ (ŵ − w)²."""
    total = 0.0
    for part, exact in parts(rows):
        own = Blocked(weight.integers[part], weight.grid.of(part))
        total += float(np.square(own.real() - exact).sum(dtype=np.float64))
    return total
