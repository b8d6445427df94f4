"""A model with its groups of channels and its layers: what choosing channels and cutting them share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphopt import graph as g
from graphopt.legacy import to_ir4
from graphopt.model import Model
from graphopt.precision import Task
from graphopt.runtime.pairs import Pairs
from graphopt.samples.sampling import Sample
from graphopt_passes.axes import Analysis, Group, groups
from graphopt_passes.prune.readers import Columns, unit_columns
from graphopt_passes.refit.behind import MOST_COLUMNS, layers_of
from graphopt_passes.refit.linear import Linear
from graphopt_passes.refit.moments import moments
from graphopt_passes.refit.samples import collector_of, fitting_samples

Kept = Mapping[Group, Columns]  # units that stay; other groups keep all


@dataclass(frozen=True)
class Network:
    """The model of a task.

    Attributes:
        task: what to work with.
    """

    task: Task

    @cached_property
    def base(self) -> Model:
        """The task's model, whose weights are constants."""
        model = self.task.model.clone()
        to_ir4(model)
        return model

    @cached_property
    def analysis(self) -> Analysis:
        """Its channels."""
        return groups(self.base, self.task.options.keep)

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The groups that may be narrower, by a name of their own."""
        found: dict[str, Group] = {}
        for group in self.analysis.groups:
            name = group.name
            while name in found:
                name += "'"
            found[name] = group
        return found

    @cached_property
    def layers(self) -> dict[str, Linear]:
        """All layers that multiply with a constant, by name."""
        return layers_of(self.base)

    @cached_property
    def samples(self) -> Sequence[Sample]:
        """What layers are fitted to; none without data."""
        return fitting_samples(self.task) if self.task.options.data is not None else []

    def read_by(self, group: Group) -> list[Linear]:
        """The layers whose weight sums over a group."""
        ports = [member.port for member in group.consumers if member.port is not None]
        names = [g.output_name(port.node) for port in ports if port.index == 1]
        return [self.layers[name] for name in names if name in self.layers]

    def pairs(self, student: Model, layers: Sequence[Linear]) -> Iterator[tuple[str, Pairs]]:
        """Sums over what layers of a student read, and what they give in the model that there was.

        Layers of very many columns, and all without samples, are left out.
        """
        seen = [layer for layer in layers if layer.columns <= MOST_COLUMNS]
        if seen and self.samples:
            found = moments(collector_of(self.task), self.base, student, seen, self.samples)
            yield from ((layer.name, pairs) for layer, pairs in found)

    def columns(self, layer: Linear, kept: Kept) -> Columns | None:
        """The columns that a layer still reads; None if that is all of them."""
        gone = [
            unit_columns(group, layer)[np.setdiff1d(np.arange(group.width), units)].reshape(-1)
            for group, units in kept.items()
            if any(one.name == layer.name for one in self.read_by(group))
        ]
        return np.setdiff1d(np.arange(layer.columns), np.concatenate(gone)) if gone else None
