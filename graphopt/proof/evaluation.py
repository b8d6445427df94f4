"""Scores models on held-out samples against the original, by its outputs and by the user's metric."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.console.progress import Progress, silent
from graphopt.errors import DataError
from graphopt.proof.accuracy import Score, Tally
from graphopt.proof.labels import Labels
from graphopt.proof.references import Outputs, References, opened
from graphopt.proof.usermetric import UserMetric
from graphopt.runtime.values import keep
from graphopt.runtime.worker import Session, Worker
from graphopt.samples.sampling import Sample, Samples
from graphopt.target import CPU, Target

Array = NDArray[Any]
KEPT_BYTES = 256_000_000
_OutputsOf = Callable[[Session, Sample, Outputs], Outputs]


class Evaluator(Protocol):
    """Says how good a model is."""

    @property
    def reference(self) -> Score:
        """The score of the original."""

    def score(self, model: Path) -> Score:
        """The score of a model that takes and gives what the original does.

        Raises:
            WorkerError: the model does not run.
            DataError: the original does not run on a sample, or the user's function fails.
        """


@dataclass
class HeldOut:
    """The evaluator of :func:`graphopt.optimize`: each held-out sample is run as the user will run it.

    Args:
        worker: runs the models.
        original: the original's file.
        samples: the held-out samples, the same on every iteration.
        metric: labels of these samples, or the user's function; None judges by the outputs alone.
        target: where the models run.
        threads: ONNX Runtime's intra-op threads; 0 is its default.
        kept_bytes: how much of the original's outputs to keep rather than compute again.
        progress: told how many samples are done.
    """

    worker: Worker
    original: Path
    samples: Samples
    metric: Labels | UserMetric | None = None
    target: Target = CPU
    threads: int = 0
    kept_bytes: int = KEPT_BYTES
    progress: Progress = silent

    @cached_property
    def reference(self) -> Score:
        """The score of the original."""
        return self._original[0]

    def score(self, model: Path) -> Score:
        """The score of a model; see :class:`Evaluator`.

        Raises:
            WorkerError: the model does not run.
            DataError: the original does not run on a sample, or the user's function fails.
        """
        reference, expected = self._original
        score, merits = self._judged(model, self._run, reference.samples)
        if not isinstance(self.metric, Labels):
            return score
        error, lost, gained = self.metric.compare(expected, merits)
        return replace(score, metric_error=error, lost=lost, gained=gained)

    def first(self, count: int) -> HeldOut:
        """An evaluator on the first samples only, for quick trials; a user's function stays as it is."""
        head = Samples(self.samples.source, lambda: itertools.islice(self.samples, count))
        return replace(self, samples=head)

    @cached_property
    def _references(self) -> References:
        return References(
            self.worker, self.original, self.samples, self.target, self.threads, self.kept_bytes
        )

    @cached_property
    def _original(self) -> tuple[Score, Array]:
        """The original's own score, and what each label says of it."""
        return self._judged(self.original, lambda session, sample, expected: expected)

    def _judged(self, model: Path, outputs_of: _OutputsOf, total: int | None = None) -> tuple[Score, Array]:
        """Compare a model on all samples, then let the user's function run it; also the merits by label."""
        tally, merits = Tally(), [np.zeros(0, np.float32)]
        with opened(self.worker, model, self.target, self.threads) as session:
            for sample, expected in self._references:
                self.progress("judging", tally.samples, total)
                found = outputs_of(session, sample, expected)
                if isinstance(self.metric, Labels):
                    merits.append(self.metric.merits(tally.samples, found))
                tally.add(expected, found)
            if not tally.samples:
                raise DataError(f"{self.samples.source} holds no sample to judge by")
            joined = np.concatenate(merits)
            return self._with_metric(tally.score(), joined, session), joined

    def _with_metric(self, score: Score, merits: Array, session: Session) -> Score:
        if isinstance(self.metric, Labels):
            value = self.metric.metric(merits)
            return replace(score, metric=value, metric_name=self.metric.name, rows=merits.size)
        if isinstance(self.metric, UserMetric):
            value = self.metric.measure(lambda feeds: self.worker.run(session, feeds))
            return replace(score, metric=value, metric_name=self.metric.name)
        return score

    def _run(self, session: Session, sample: Sample, expected: Outputs) -> Outputs:
        return keep(self.worker.run(session, sample))
