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

from graphopt.errors import DataError
from graphopt.progress import Progress, silent
from graphopt.proof.accuracy import Score, Tally
from graphopt.proof.labels import Labels
from graphopt.proof.references import Outputs, References
from graphopt.proof.usermetric import UserMetric
from graphopt.runtime.values import keep
from graphopt.runtime.worker import Session, Worker
from graphopt.samples.sampling import Sample, Samples
from graphopt.target import CPU, Target

Array = NDArray[Any]
KEPT_BYTES = 256_000_000
_OutputsOf = Callable[[Sample, Outputs], Outputs]


class Evaluator(Protocol):
    """Says how good a model is."""

    @property
    def reference(self) -> Score:
        """The score of the original."""

    def score(self, model: Path) -> Score:
        """The score of a model that takes and gives what the original does.

        Raises:
            WorkerError: the model does not run.
            DataError: the original does not run on a sample, or gives no more labels than guesses would, or
                the user's function fails.
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
            DataError: the original does not run on a sample, or gives no more labels than guesses would, or
                the user's function fails.
        """
        reference, expected = self._original
        with self.worker.opened(model, self.target, self.threads) as session:
            score, merits = self._compare(
                lambda one, _: keep(self.worker.run(session, one)), reference.samples
            )
            score = self._asked(score, session)
        if not isinstance(self.metric, Labels):
            return score
        error, lost, gained = self.metric.compare(expected, merits)
        return replace(score, metric_error=error, lost=lost, gained=gained)

    def first(self, count: int) -> HeldOut:
        """An evaluator on the first samples only, for quick trials, which judges by the outputs alone."""
        head = Samples(self.samples.source, lambda: itertools.islice(self.samples, count))
        return replace(self, samples=head, metric=None)

    @cached_property
    def _references(self) -> References:
        return References(
            self.worker, self.original, self.samples, self.target, self.threads, self.kept_bytes
        )

    @cached_property
    def _original(self) -> tuple[Score, Array]:
        """The original's own score, and what each label says of it."""
        score, merits = self._compare(lambda _, expected: expected)
        if isinstance(self.metric, Labels):
            self.metric.check(merits)
        if isinstance(self.metric, UserMetric):
            with self.worker.opened(self.original, self.target, self.threads) as session:
                score = self._asked(score, session)
        return score, merits

    def _compare(self, outputs_of: _OutputsOf, total: int | None = None) -> tuple[Score, Array]:
        """Compare with the original on all samples, and by the labels if there are any: the merit of each."""
        tally, merits = Tally(), [np.zeros(0, np.float32)]
        for sample, expected in self._references:
            self.progress("judging", tally.samples, total)
            found = outputs_of(sample, expected)
            if isinstance(self.metric, Labels):
                merits.append(self.metric.merits(tally.samples, found))
            tally.add(expected, found)
        if not tally.samples:
            raise DataError(f"{self.samples.source} holds no sample to judge by")
        score, joined = tally.score(), np.concatenate(merits)
        if isinstance(self.metric, Labels):
            value = self.metric.metric(joined)
            score = replace(score, metric=value, metric_name=self.metric.name, rows=joined.size)
        return score, joined

    def _asked(self, score: Score, session: Session) -> Score:
        """The score with what the user's function says of a model, if there is one."""
        if not isinstance(self.metric, UserMetric):
            return score
        value = self.metric.measure(lambda feeds: self.worker.run(session, feeds))
        return replace(score, metric=value, metric_name=self.metric.name)
