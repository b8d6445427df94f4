"""How far a model's outputs are from the original's, summed over samples.

The signal-to-quantization-noise ratio of an output is SQNR = 10 log₁₀(Σ r² / Σ (r − c)²) over all elements
of all samples, r being the original's. Outputs of different size weigh the same in a model's SQNR: it is
that of the mean of their noise-to-signal ratios.

A single sample on which a decision flips can have more noise than all others together. So searches compare
models by the mean over samples of −10 log₁₀(1/SQNR + ε), which such a sample moves by its share only. No
decision depends on ε: it keeps samples that are all but equal, as they are where scores saturate, from
outweighing those in doubt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.proof.classes import are_classes, class_axis
from graphopt.proof.tolerance import differing, distances, leaves, numbers
from graphopt.runtime.values import FLOATING, Tensor, Value

# The noise over signal that decides nothing, 60 dB; and the worst that counts.
NEGLIGIBLE = 1e-6
_HOPELESS = 100.0


@dataclass(frozen=True)
class OutputScore:
    """How one output compares with the original's.

    Attributes:
        name: the output; ``y[0]`` is the first item of a sequence.
        sqnr_db: see the module; infinite without noise, None for integers and for outputs that are all 0.
        agreement: share of rows with the same largest element if it looks like scores of classes, share of
            equal elements where the output is of integers, booleans or strings; else None.
        rows: how many rows or elements that is a share of.
    """

    name: str
    sqnr_db: float | None
    agreement: float | None
    rows: int


@dataclass(frozen=True)
class Score:
    """How good a model is on held-out samples.

    Attributes:
        samples: how many there were.
        sqnr_db: over all outputs, see the module; None if none is floating.
        agreement: share of the rows of all outputs that have an agreement; None if none has.
        outputs: each output on its own.
        worst_sample: index of the sample with the lowest SQNR in one of its outputs, then ``worst_db``.
        worst_db: that SQNR; None if no output is floating.
        metric: what the user judges by, higher is better; None if nothing was given to judge by.
        metric_name: its name, such as ``top-1 accuracy (%)``.
        metric_error: standard error of the difference to the original's metric; None if it is not known.
        rows: how many labels the metric is a mean over; None if it is not.
        lost: labels that the original gets right and this model does not; None if they are no classes.
        gained: labels that this model gets right and the original does not.
        typical_db: mean over samples, see the module; at most 60, None if no output is floating.
    """

    samples: int
    sqnr_db: float | None
    agreement: float | None
    outputs: tuple[OutputScore, ...]
    worst_sample: int | None = None
    worst_db: float | None = None
    metric: float | None = None
    metric_name: str = ""
    metric_error: float | None = None
    rows: int | None = None
    lost: int | None = None
    gained: int | None = None
    typical_db: float | None = None


@dataclass
class Tally:
    """Sums over samples; its size does not depend on their number."""

    samples: int = 0
    _sums: dict[str, _Sum] = field(default_factory=dict)
    _worst: tuple[float, int] | None = None
    _typical: float = 0.0
    _typical_of: int = 0

    def add(self, expected: Mapping[str, Value], found: Mapping[str, Value]) -> None:
        """Take in one sample: what the original gives, and what the model gives."""
        other = dict(leaf for name, value in found.items() for leaf in leaves(name, value))
        ratios = []
        for name, value in expected.items():
            for leaf, tensor in leaves(name, value):
                ratio = self._sums.setdefault(leaf, _Sum()).add(leaf, tensor, other.get(leaf))
                ratios += [] if ratio is None else [ratio]
        if ratios:
            self._typical += _decibels(min(sum(ratios) / len(ratios) + NEGLIGIBLE, _HOPELESS))
            self._typical_of += 1
        if ratios and (self._worst is None or max(ratios) > self._worst[0]):
            self._worst = max(ratios), self.samples
        self.samples += 1

    def score(self) -> Score:
        """The result so far, without a metric."""
        outputs = tuple(total.score(name) for name, total in self._sums.items())
        ratios = [total.ratio for total in self._sums.values() if total.ratio is not None]
        judged = [output for output in outputs if output.agreement is not None]
        rows = sum(output.rows for output in judged)
        agreeing = sum(output.rows * (output.agreement or 0.0) for output in judged)
        ratio, worst = self._worst if self._worst is not None else (None, None)
        return Score(
            self.samples,
            _decibels(sum(ratios) / len(ratios)) if ratios else None,
            agreeing / rows if rows else None,
            outputs,
            worst,
            None if ratio is None else _decibels(ratio),
            typical_db=self._typical / self._typical_of if self._typical_of else None,
        )


@dataclass
class _Sum:
    """One output: powers of signal and noise, and rows with the same decision."""

    signal: float = 0.0
    noise: float = 0.0
    rows: int = 0
    agreeing: int = 0
    floating: bool = False
    decides: bool = True

    @property
    def ratio(self) -> float | None:
        """Noise over signal; None if the output says nothing."""
        return _ratio(self.noise, self.signal) if self.floating else None

    def score(self, name: str) -> OutputScore:
        agreement = self.agreeing / self.rows if self.decides and self.rows else None
        sqnr = None if self.ratio is None else _decibels(self.ratio)
        return OutputScore(name, sqnr, agreement, self.rows if agreement is not None else 0)

    def add(self, name: str, expected: Tensor, found: Tensor | None) -> float | None:
        """Take in one sample; returns its noise over its signal."""
        if found is not None and (found.shape != expected.shape or found.elem_type != expected.elem_type):
            found = None
        if expected.elem_type not in FLOATING:
            self.rows += expected.size
            self.agreeing += 0 if found is None else expected.size - differing(expected, found)[0]
            return None
        self.floating = True
        signal, noise = _powers(expected, found)
        self.signal, self.noise = self.signal + signal, self.noise + noise
        self._decide(name, expected, found)
        return _ratio(noise, signal)

    def _decide(self, name: str, expected: Tensor, found: Tensor | None) -> None:
        array = expected.numpy()
        self.decides = self.decides and are_classes(name, array)
        if self.decides:
            axis = class_axis(array.shape)
            best = array.argmax(axis=axis)
            self.rows += best.size
            self.agreeing += 0 if found is None else int((found.numpy().argmax(axis=axis) == best).sum())


def _powers(expected: Tensor, found: Tensor | None) -> tuple[float, float]:
    """Σ r² and Σ (r − c)²; another shape has lost all of the signal, NaN and Inf are endless noise."""
    reference = numbers(expected)
    signal = float(np.square(np.abs(reference[np.isfinite(reference)])).sum())
    if found is None:
        return signal, signal
    distance, specials = distances(reference, numbers(found))
    return signal, math.inf if specials else float(np.square(distance).sum())


def _ratio(noise: float, signal: float) -> float | None:
    if signal:
        return noise / signal
    return math.inf if noise else None


def _decibels(ratio: float) -> float:
    """The SQNR of a noise-to-signal ratio."""
    return -10 * math.log10(ratio) if 0 < ratio < math.inf else math.inf if ratio == 0 else -math.inf
