"""Cuts channels out of a model, and fits what is left to what there was.

The model is fitted before it is cut, with zeros where layers no longer read: then all values keep their
shapes, and what a layer gives can be compared with what it gave.
"""

from __future__ import annotations

from graphopt.model import Model
from graphopt_passes.axes import groups, masked, shrink
from graphopt_passes.prune.network import Kept, Network
from graphopt_passes.refit.recurrent import fittable
from graphopt_passes.refit.teacher import Fitted


def cut(network: Network, kept: Kept) -> Model:
    """The model without the units that are not kept, its layers fitted unless there is nothing to fit to."""
    final, run = network.model.clone(), network.task.new_run()
    if network.refits:
        fitted = _fitted(network, kept)
        for name, layer in fittable(final).items():
            if name in fitted:
                layer.write(final, run, fitted[name].fit())
    again = groups(final, network.task.options.keep).groups
    same = dict(zip(network.analysis.groups, again, strict=True))
    return shrink(final, {same[group]: units for group, units in kept.items()}, run.spill)


def _fitted(network: Network, kept: Kept) -> dict[str, Fitted]:
    """Layers with weights for what they read now; zero where they read nothing more."""
    student, run = masked(network.model, kept), network.task.new_run()
    columns = {name: network.columns(layer, kept) for name, layer in network.fitted.items()}
    narrower = {name: some for name, some in columns.items() if some is not None}
    return network.fit_behind(student, run, narrower)
