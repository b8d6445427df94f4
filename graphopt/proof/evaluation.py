"""Scores models on held-out samples against the original, by its outputs and by the user's metric."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
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
from graphopt.proof.references import References, opened
from graphopt.proof.usermetric import UserMetric
from graphopt.runtime.values import Value, keep
from graphopt.runtime.worker import Session, Worker
from graphopt.samples.sampling import Sample, Samples
from graphopt.target import CPU, Target

Array = NDArray[Any]
KEPT_BYTES = 256_000_000


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
        with opened(self.worker, model, self.target, self.threads) as session:
            score, merits = self._compare(session)
        expected = self._original[1]
        if score.rows is None or merits is None or expected is None:
            return score
        return replace(score, **_paired(expected, merits, self.metric))

    def first(self, count: int) -> HeldOut:
        """An evaluator on the first samples only, for quick trials; a user's function still decides alone."""
        head = Samples(self.samples.source, lambda: itertools.islice(self.samples, count))
        return replace(self, samples=head)

    @cached_property
    def _references(self) -> References:
        return References(
            self.worker, self.original, self.samples, self.target, self.threads, self.kept_bytes
        )

    @cached_property
    def _original(self) -> tuple[Score, Array | None]:
        """The original's own score, and what each label says of it."""
        if not isinstance(self.metric, UserMetric):
            return self._compare(None)
        with opened(self.worker, self.original, self.target, self.threads) as session:
            return self._compare(None, session)

    def _compare(self, model: Session | None, asked: Session | None = None) -> tuple[Score, Array | None]:
        """Run a model (None: the original, whose outputs are known) on all samples, then ask the function."""
        tally, merits = Tally(), list[Array]()
        for sample, expected in self._references:
            self.progress("judging", tally.samples)
            found = expected if model is None else self._run(model, sample)
            if isinstance(self.metric, Labels):
                merits.append(self.metric.merits(tally.samples, found))
            tally.add(expected, found)
        if not tally.samples:
            raise DataError(f"{self.samples.source} holds no sample to judge by")
        return self._with_metric(tally.score(), merits, model or asked)

    def _with_metric(
        self, score: Score, merits: list[Array], session: Session | None
    ) -> tuple[Score, Array | None]:
        if isinstance(self.metric, Labels):
            joined = np.concatenate(merits)
            if not joined.size:
                raise DataError(f"{self.metric.source}: no label is left, all are negative")
            value, rows = self.metric.metric(joined), joined.size
            return replace(score, metric=value, metric_name=self.metric.name, rows=rows), joined
        if isinstance(self.metric, UserMetric):
            assert session is not None
            value = self.metric.measure(lambda feeds: self.worker.run(session, feeds))
            return replace(score, metric=value, metric_name=self.metric.name), None
        return score, None

    def _run(self, session: Session, sample: Sample) -> dict[str, Value]:
        return keep(self.worker.run(session, sample))


def _paired(before: Array, after: Array, labels: Any) -> Mapping[str, Any]:
    """The standard error of the metric's difference, label by label, and how many decisions turned."""
    change = after.astype(np.float64) - before
    scale = 100 if labels.are_classes else 1
    facts: dict[str, Any] = {"metric_error": float(change.std() / np.sqrt(change.size)) * scale}
    if labels.are_classes:
        facts |= {"lost": int((change < 0).sum()), "gained": int((change > 0).sum())}
    return facts
