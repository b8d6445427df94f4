"""Cuts channels out of a model, and fits what is left to what there was.

The model is fitted before it is cut, with zeros where layers no longer read: then all values keep their
shapes, and what a layer gives can be compared with what it gave.
"""

from __future__ import annotations

import numpy as np

from graphopt.model import Model
from graphopt_passes.axes import groups, masked, shrink
from graphopt_passes.prune.network import Kept, Network, layers_of
from graphopt_passes.refit.kept import fit_kept
from graphopt_passes.refit.solve import Fit
from graphopt_passes.refit.waves import waves


def cut(network: Network, kept: Kept) -> Model:
    """The model without the units that are not kept, its layers fitted unless there is nothing to fit to."""
    final, run = network.base.clone(), network.task.new_run()
    if network.samples and network.task.options.refit:
        fits = _fits(network, kept)
        for name, layer in layers_of(final).items():
            if name in fits:
                layer.write(final, run, fits[name])
    again = groups(final, network.task.options.keep).groups
    same = dict(zip(network.analysis.groups, again, strict=True))
    return shrink(final, {same[group]: units for group, units in kept.items()}, run.spill)


def _fits(network: Network, kept: Kept) -> dict[str, Fit]:
    """Weights for what layers read now, in the order of the graph; zero where they read nothing more.

    Layers behind the first cut that are not cut themselves make up for those that are.
    """
    student, run = masked(network.base, kept), network.task.new_run()
    columns = {name: network.columns(layer, kept) for name, layer in network.layers.items()}
    mine = layers_of(student)
    first = next((at for at, name in enumerate(mine) if columns[name] is not None), len(mine))
    fits: dict[str, Fit] = {}
    steps = waves(student, list(mine.values())[first:])
    for done, wave in enumerate(steps):
        network.task.progress("fitting layers", done, len(steps))
        for name, pairs in network.pairs(student, wave):
            read, layer = columns[name], mine[name]
            fits[name], _ = fit_kept(layer, pairs, np.arange(layer.columns) if read is None else read)
            layer.write(student, run, fits[name])
    return fits
