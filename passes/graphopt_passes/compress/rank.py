"""``--rank``: layers split into two thinner ones, where little is lost and time is gained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.activations import Request
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.precision import Outcome, Task
from graphopt.runtime.moments import Gram, Moments
from graphopt_passes.compress.low_rank import Spectrum
from graphopt_passes.compress.split import split
from graphopt_passes.compress.stage import reformed
from graphopt_passes.quantize.consumers import LEAST_ROWS, ROWS_PER_COLUMN
from graphopt_passes.refit.linear import Linear

MOST_CHANNELS = 4096  # their moments take 128 MB, and their eigenvectors a minute
STEP = 16  # ranks are multiples of what kernels compute at a time
MOST_KEPT = 0.6  # of the numbers of a layer: two products read and write more than one

_AT_ONCE = 1024  # columns of a weight


def prune(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return reformed(task, _LowRank(), task.options.amounts["rank"].share or 1.0)


def ranks(channels: int, columns: int) -> range:
    """The ranks that a layer may have: multiples of 16 with less than 0.6 of its numbers."""
    most = math.ceil(MOST_KEPT * channels * columns / (channels + columns)) - 1
    return range(STEP, most + 1, STEP)


@dataclass(frozen=True)
class _LowRank:
    """See :class:`graphopt_passes.compress.stage.Form`."""

    technique: str = "rank"

    def refusal(self, layer: Linear, model: Model, run: Run) -> str:
        if layer.groups > 1:
            return "its groups of channels are thin already"
        if not ranks(layer.channels, layer.columns):
            return f"{layer.channels} channels of {layer.columns} columns: too thin for rank {STEP}"
        if layer.channels > MOST_CHANNELS:
            return f"the moments of {layer.channels:,} outputs would take too much memory"
        if layer.op != "MatMul" and not layer.can_shift:
            return "what is added to its product is not one constant for each channel"
        return ""

    def request(self, layer: Linear, arrays: int) -> Request:
        rows = max(LEAST_ROWS, -(-ROWS_PER_COLUMN * layer.channels // arrays))
        return Request(layer.name, Moments(layer.channels, axis=layer.axis, rows=rows))

    def fitted(self, layer: Linear, moments: Gram | None) -> _Ranked:
        spectrum = _blind(layer) if moments is None else _seen(layer, moments)
        return _Ranked(layer.channels, layer.columns, spectrum)


@dataclass(frozen=True)
class _Ranked:
    """See :class:`graphopt_passes.compress.stage.Fitted`; sizes are ranks."""

    channels: int
    columns: int
    spectrum: Spectrum

    @property
    def sizes(self) -> Sequence[int]:
        return ranks(self.channels, self.columns)

    def error(self, size: int) -> float:
        return self.spectrum.error(size)

    def kept(self, size: int) -> float:
        return self.numbers(size) / (self.channels * self.columns)

    def numbers(self, size: int) -> int:
        return size * (self.channels + self.columns)

    def told(self, size: int) -> str:
        return f"rank {size} of {min(self.channels, self.columns)}"

    def write(self, layer: Linear, size: int, model: Model, run: Run) -> Sequence[str]:
        return [split(layer, self.spectrum.factors(layer.rows(), size), model, run)]


def _seen(layer: Linear, moments: Gram) -> Spectrum:
    """The spectrum of what a layer makes, less its own bias."""
    mean, second = moments.mean[0], moments.products[0] / moments.count
    own = layer.bias().astype(np.float64)
    second = second - np.outer(mean, own) - np.outer(own, mean) + np.outer(own, own)
    return Spectrum.of(second, mean - own if layer.can_shift else None)


def _blind(layer: Linear) -> Spectrum:
    """The spectrum if all inputs were independent and of one size: that of the weight alone."""
    rows, total = layer.rows(), np.zeros((layer.channels, layer.channels))
    for start in range(0, layer.columns, _AT_ONCE):
        part = rows[:, start : start + _AT_ONCE].astype(np.float64)
        total += part @ part.T
    return Spectrum.of(total, None)
