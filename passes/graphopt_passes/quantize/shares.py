"""Samples of the calibration to fit weights to, and others to choose between weights that were fitted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.precision import Task
from graphopt.proof.evaluation import HeldOut
from graphopt.samples.sampling import Sample, Samples
from graphopt.samples.shelf import shelved

# Samples for second moments, which need fewer than ranges do: each gives many rows.
FITTING = 256
# Of the calibration, every so many-th sample chooses between weights that are fitted to the others.
_PART = 4
CHOOSING = 64


@dataclass(frozen=True)
class Shares:
    """Two shares of the calibration, spread evenly; if there are few samples, both are all of them.

    Attributes:
        fitting: at most 256.
        choosing: at most 64.
    """

    fitting: Sequence[Sample]
    choosing: Sequence[Sample]

    @classmethod
    def of(cls, task: Task) -> Shares:
        """The shares of a task's calibration, in a file of the worker's folder."""
        division, folder = task.division, task.worker.folder
        fitting, choosing = _numbers(division.calibration_count)
        wanted = {*fitting, *choosing}
        numbers = [index for index in range(division.calibration_count) if index in wanted]
        flags = (index in wanted for index in range(division.calibration_count))
        kept = dict(
            zip(numbers, shelved(itertools.compress(division.calibration, flags), folder), strict=True)
        )
        return cls([kept[index] for index in fitting], [kept[index] for index in choosing])

    def chooser(self, task: Task) -> HeldOut:
        """Says which weights are better: by their noise beside the exact result."""
        samples = self.choosing
        source = Samples(task.division.calibration.source, lambda: iter(samples), count=len(samples))
        return HeldOut(task.worker, task.float_path, source, None, task.target, task.options.threads)


def _numbers(count: int) -> tuple[Sequence[int], Sequence[int]]:
    """Which of so many samples weights are fitted to, and which choose between weights."""
    choosing = range(_PART - 1, count, _PART)
    fitting = [index for index in range(count) if index not in choosing]
    if count < 2 * _PART:  # then neither share would say anything
        return range(count), range(count)
    return fitting[:: -(-len(fitting) // FITTING)], choosing[:: -(-len(choosing) // CHOOSING)]
