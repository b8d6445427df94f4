"""The samples that layers are fitted to: many, a few at a time where the model's batch is dynamic."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from graphopt.activations import Collector
from graphopt.precision import Task
from graphopt.samples.batches import batched
from graphopt.samples.sampling import Sample
from graphopt.samples.shelf import shelved

MOST = 2048
"""Samples: a layer that is read once per sample has as many rows."""

_BATCH = 32


def fitting_samples(task: Task) -> Sequence[Sample]:
    """Those of a task's calibration, evenly spread, in a file of the worker's folder.

    None is set apart to choose with: sums over them keep a part of their own for that (``Pairs.held``).
    """
    count = task.division.calibration_count
    samples = itertools.islice(task.division.calibration, None, None, max(-(-count // MOST), 1))
    few = count < 8 * _BATCH  # whole batches are held out
    return shelved(batched(task.model.ir, samples, 1 if few else _BATCH), task.worker.folder)


def collector_of(task: Task) -> Collector:
    """What gathers statistics for a task, within its memory."""
    options = task.options
    return Collector(task.worker, task.target, options.threads, options.calibration_memory, task.progress)
