"""``--rank``: layers split into two thinner ones, where little is lost and time is gained.

1. Second moments of the outputs of each layer give the error of every rank (``low_rank``).
2. Each layer alone is split as thin as it may be, and the noise at the outputs of the model measured; other
   ranks make as much less of it as their errors are smaller.
3. Ranks are chosen together, so that the wanted share of the cost goes with the least noise (``allocation``).
4. What is built is profiled: a layer whose two parts take longer than it did stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from graphopt import graph as g
from graphopt.activations import Collector, Request
from graphopt.model import Model
from graphopt.precision import Outcome, Task
from graphopt.report import PrunedLayer
from graphopt.runtime.moments import Gram, Moments
from graphopt_passes.compress.linear import Linear, bias_of, linears
from graphopt_passes.compress.low_rank import Spectrum
from graphopt_passes.compress.split import split
from graphopt_passes.prune.allocation import Choice, allocate
from graphopt_passes.prune.costs import Costs, milliseconds
from graphopt_passes.prune.search import Attempt, searched
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.sensitivity import sensitivities
from graphopt_passes.quantize.shares import FITTING, Shares

MOST_CHANNELS = 4096  # their moments take 128 MB, and their eigenvectors a minute
STEP = 16  # ranks are multiples of what kernels compute at a time
MOST_KEPT = 0.6  # of the numbers of a layer: two products read and write more than one
_TECHNIQUE = "rank"


def prune(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    stage = _Stage(task)
    asked = task.options.amounts[_TECHNIQUE].share
    return searched(task, stage.make, asked or 1.0, saves_time=task.options.objective == "latency")


def ranks(channels: int, columns: int) -> range:
    """The ranks that a layer may have: multiples of 16 with less than 0.6 of its numbers."""
    most = math.ceil(MOST_KEPT * channels * columns / (channels + columns)) - 1
    return range(STEP, most + 1, STEP)


@dataclass
class _Stage:
    """One run."""

    task: Task
    refused: dict[str, PrunedLayer] = field(default_factory=dict)

    @cached_property
    def costs(self) -> Costs:
        return Costs(self.task)

    @cached_property
    def layers(self) -> dict[str, Linear]:
        """The layers that may be split, by name; refusals are noted."""
        found = {}
        for one in linears(self.task.model, self.task.new_run(), _TECHNIQUE):
            if not isinstance(one, Linear):
                self._refuse(g.output_name(one[0]), one[0].op_type, one[1])
            elif reason := _thin(one):
                self._refuse(one.name, one.node.op_type, reason)
            else:
                found[one.name] = one
        return found

    def _refuse(self, name: str, op: str, reason: str) -> None:
        self.refused[name] = PrunedLayer(name, op, _TECHNIQUE, reason=reason)

    @cached_property
    def spectra(self) -> dict[str, Spectrum]:
        """What the outputs of each layer lie along."""
        if self.task.options.data is None:
            return {name: _blind(layer) for name, layer in self.layers.items()}
        return dict(self._measured())

    def _measured(self) -> Iterator[tuple[str, Spectrum]]:
        requests = {Request(name, self._kind(layer)): layer for name, layer in self.layers.items()}
        options, task = self.task.options, self.task
        collector = Collector(
            task.worker, task.target, options.threads, options.calibration_memory, task.progress
        )
        for part in collector.stream(task.model, requests, Shares.of(task).fitting):
            for request, moments in part.found.items():
                assert isinstance(moments, Gram)
                yield request.value, _spectrum(requests[request], moments)
            for request, why in part.absent.items():
                self._refuse(
                    request.value, requests[request].node.op_type, f"its output cannot be seen: {why}"
                )

    def _kind(self, layer: Linear) -> Moments:
        arrays = min(self.task.division.calibration_count, FITTING)
        rows = max(64, -(-8 * layer.channels // max(arrays, 1)))
        return Moments(layer.channels, axis=layer.axis, rows=rows)

    @cached_property
    def noises(self) -> dict[str, float]:
        """The noise at the outputs when a layer alone is as thin as it may be."""

        def build(name: str) -> Draft:
            return Draft(self.task, self._build({name: STEP})[0], frozenset())

        return sensitivities(self.task, build, list(self.spectra))

    @property
    def choices(self) -> dict[str, list[Choice[int]]]:
        """What each layer that may still be split can become."""
        return {
            name: [self._choice(name, rank) for rank in ranks(layer.channels, layer.columns)]
            for name, layer in self.layers.items()
            if name in self.spectra and name not in self.refused
        }

    def _choice(self, name: str, rank: int) -> Choice[int]:
        spectrum = self.spectra[name]
        saved = self.costs.shares.get(name, 0.0) * (1 - self._kept(name, rank))
        thinnest = spectrum.error(STEP)
        return Choice(rank, saved, self.noises[name] * spectrum.error(rank) / thinnest if thinnest else 0.0)

    def make(self, share: float) -> Attempt:
        """Split layers so that a share of the cost goes."""
        while chosen := allocate(self.choices, share):
            model, thin = self._build(chosen)
            times = milliseconds(self.task, model) if self._saves_time else {}
            slower = [name for name in chosen if times and self._told_slower(name, thin[name], times)]
            if not slower:
                return self._attempt(model, chosen, thin, times)
        told = "no layer can be split into two that are worth it"
        return Attempt(None, 0.0, tuple(self.refused.values()), told)

    @property
    def _saves_time(self) -> bool:
        return self.task.measured and self.task.options.objective == "latency"

    def _told_slower(self, name: str, thin: str, times: Mapping[str, float]) -> bool:
        """Whether the two parts of a layer take longer than it did; if so it is refused."""
        before, after = self.costs.milliseconds.get(name, 0.0), times.get(name, 0.0) + times.get(thin, 0.0)
        if after < before:
            return False
        reason = f"two thinner layers take {after:.3g} ms, it takes {before:.3g} ms"
        self._refuse(name, self.layers[name].node.op_type, reason)
        return True

    def _build(self, chosen: Mapping[str, int]) -> tuple[Model, dict[str, str]]:
        """The model with these layers split, and the names of what their first parts make."""
        model, run = self.task.model.clone(), self.task.new_run()
        thin = {}
        for layer in list(linears(model, run, _TECHNIQUE)):
            if isinstance(layer, Linear) and (rank := chosen.get(layer.name)):
                spectrum = self.spectra[layer.name]
                factors = spectrum.factors(layer.matrix(), rank)
                thin[layer.name] = split(layer, *factors, spectrum.shift(rank), model, run)
        return model, thin

    def _attempt(
        self, model: Model, chosen: Mapping[str, int], thin: Mapping[str, str], times: Mapping[str, float]
    ) -> Attempt:
        share = sum(
            self.costs.shares.get(name, 0.0) * (1 - self._kept(name, chosen[name])) for name in chosen
        )
        rows = [self._row(name, rank, times, thin[name]) for name, rank in chosen.items()]
        idle = [self._whole(name) for name in self.layers if name not in chosen and name not in self.refused]
        told = f"{share:.0%} of the {self.costs.unit} by {len(chosen)} layers of lower rank"
        return Attempt(model, share, (*rows, *idle, *self.refused.values()), told)

    def _kept(self, name: str, rank: int) -> float:
        """The share of a layer's numbers and products that is left."""
        layer = self.layers[name]
        return rank * (layer.channels + layer.columns) / layer.numbers

    def _row(self, name: str, rank: int, times: Mapping[str, float], thin: str) -> PrunedLayer:
        layer, macs = self.layers[name], self.costs.macs.get(name, 0)
        return PrunedLayer(
            name,
            layer.node.op_type,
            _TECHNIQUE,
            f"rank {rank} of {min(layer.channels, layer.columns)}",
            self.spectra[name].error(rank),
            layer.numbers,
            rank * (layer.channels + layer.columns),
            macs or None,
            round(macs * self._kept(name, rank)) or None,
            self.costs.milliseconds.get(name),
            times[name] + times.get(thin, 0.0) if name in times else None,
        )

    def _whole(self, name: str) -> PrunedLayer:
        layer = self.layers[name]
        reason = "others lose less for what they save"
        return PrunedLayer(name, layer.node.op_type, _TECHNIQUE, numbers_before=layer.numbers, reason=reason)


def _thin(layer: Linear) -> str:
    """Why a layer is not worth splitting, or cannot be; empty if it may."""
    if not ranks(layer.channels, layer.columns):
        return f"{layer.channels} channels of {layer.columns} columns: too thin for two layers of rank {STEP}"
    if layer.channels > MOST_CHANNELS:
        return f"the moments of {layer.channels:,} outputs would take too much memory"
    if layer.node.op_type != "MatMul" and bias_of(layer) is None:
        return "what is added to its product is not one constant for each channel"
    return ""


def _spectrum(layer: Linear, moments: Gram) -> Spectrum:
    """The spectrum of what a layer makes, less its own bias."""
    mean, second = moments.mean[0], moments.products[0] / moments.count
    bias = bias_of(layer)
    if bias is None:
        return Spectrum.of(second, None)
    own = np.zeros_like(bias) if layer.node.op_type == "MatMul" else bias
    second = second - np.outer(mean, own) - np.outer(own, mean) + np.outer(own, own)
    return Spectrum.of(second, mean - own)


def _blind(layer: Linear) -> Spectrum:
    """The spectrum if all inputs were independent and of one size: that of the weight alone."""
    weight = layer.matrix().astype(np.float64)
    return Spectrum.of(weight @ weight.T, None)
