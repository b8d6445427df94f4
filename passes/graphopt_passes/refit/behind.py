"""Layers behind a change are fitted to what they gave before it, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.precision import Task
from graphopt.samples.sampling import Sample
from graphopt_passes.refit.kept import Kept, fit_kept
from graphopt_passes.refit.linear import Linear, linear_layers
from graphopt_passes.refit.moments import moments
from graphopt_passes.refit.samples import collector_of
from graphopt_passes.refit.solve import Fit
from graphopt_passes.refit.waves import waves

MOST_COLUMNS = 4608  # of a layer that is fitted: its moments take 170 MB


def layers_of(model: Model) -> dict[str, Linear]:
    """The layers of a model that multiply with a constant, by name, in its order."""
    return {one.name: one for one in linear_layers(model) if isinstance(one, Linear)}


def fit_behind(  # noqa: PLR0913, PLR0917 - what is fitted to what
    task: Task,
    teacher: Model,
    student: Model,
    run: Run,
    columns: Mapping[str, Kept | None],
    samples: Sequence[Sample],
) -> dict[str, Fit]:
    """Fit a student's layers in place, from the first that was changed on, from what they read now.

    Those that were not changed make up for those before them, unless they are to be kept (``--keep``).

    Args:
        task: what to work with.
        teacher: the model that there was; layers are known by the same names.
        student: of the same outputs for all layers of the same name.
        run: the student's.
        columns: of the layers that were changed those that they still read, None for all.
        samples: to fit to; none fits nothing.

    Returns:
        The new weights, by layer.
    """
    known, mine = layers_of(teacher), layers_of(student)
    first = next((at for at, name in enumerate(mine) if name in columns), len(mine))
    todo = [
        one
        for one in list(mine.values())[first:]
        if one.name in known and one.columns <= MOST_COLUMNS and not run.keeps(one.node)
    ]
    fits: dict[str, Fit] = {}
    steps = waves(student, todo) if samples else []
    for done, wave in enumerate(steps):
        task.progress("fitting layers", done, len(steps))
        for layer, pairs in moments(collector_of(task), teacher, student, wave, samples):
            kept = columns.get(layer.name)
            some = np.arange(layer.columns) if kept is None else kept
            fits[layer.name], _ = fit_kept(layer, pairs, some)
            layer.write(student, run, fits[layer.name])
    return fits
