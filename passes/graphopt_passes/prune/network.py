"""A model with its groups of channels and its layers: what choosing channels and cutting them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphopt import graph as g
from graphopt_passes.axes import Analysis, Group, groups
from graphopt_passes.prune.readers import Columns, unit_columns
from graphopt_passes.refit.finite import nonfinite
from graphopt_passes.refit.recurrent import Layer, recurrent_layers
from graphopt_passes.refit.teacher import Teacher

Kept = Mapping[Group, Columns]  # units that stay; other groups keep all


@dataclass(frozen=True)
class Network(Teacher):
    """The model of a task, whose channels are known."""

    @cached_property
    def analysis(self) -> Analysis:
        """Its channels."""
        return groups(self.model, self.task.options.keep)

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The groups that may be narrower, by a name of their own."""
        return {name: group for name, group in self._named.items() if name not in self.refused}

    @cached_property
    def refused(self) -> dict[str, str]:
        """The other groups, and why they are left alone."""
        reasons = {
            name: nonfinite(member.value for member in group.members) for name, group in self._named.items()
        }
        return {name: reason for name, reason in reasons.items() if reason}

    @cached_property
    def _named(self) -> dict[str, Group]:
        found: dict[str, Group] = {}
        for group in self.analysis.groups:
            name = group.name
            while name in found:
                name += "'"
            found[name] = group
        return found

    @cached_property
    def fitted(self) -> Mapping[str, Layer]:
        """The layers, and those that are recurrent and can be fitted, by name."""
        found: dict[str, Layer] = dict(self.layers)
        for layer in recurrent_layers(self.model):
            if not nonfinite(value for value in layer.node.inputs if value is not None):
                found[layer.name] = layer
        return found

    def read_by(self, group: Group) -> list[Layer]:
        """The layers whose weight sums over a group."""
        ports = [member.port for member in group.consumers if member.port is not None]
        places = [(self.fitted.get(g.output_name(port.node)), port.index) for port in ports]
        found = (layer for layer, index in places if layer is not None and index in layer.weights)
        return list({layer.name: layer for layer in found}.values())

    def columns(self, layer: Layer, kept: Kept) -> Columns | None:
        """The columns that a layer still reads; None if that is all of them."""
        gone = [
            unit_columns(group, layer)[np.setdiff1d(np.arange(group.width), units)].reshape(-1)
            for group, units in kept.items()
            if any(one.name == layer.name for one in self.read_by(group))
        ]
        return np.setdiff1d(np.arange(layer.columns), np.concatenate(gone)) if gone else None
