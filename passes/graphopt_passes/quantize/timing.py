"""The costs of a placement, from profiles of the float model and of drafts.

What a profile has not seen is estimated: converting a value costs so much per element, as the median of those
that were seen. Profiles of better drafts replace what was known, since a node's time depends on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.proof.profile import Profile
from graphopt_passes.quantize.partition import Choice, Costs, Crossing
from graphopt_passes.quantize.placement import Part, Placement

# Quantizing reads four bytes and writes one: about what memory gives.
_SECONDS_PER_ELEMENT = 0.1e-9


@dataclass
class Timing:
    """What is known of the time of each part, on floats and on integers, and of each value's conversion.

    Attributes:
        placement: the parts.
        elements: value name → elements in the workload.
        floats, integers: part → seconds.
        conversions: value name → seconds of what a draft converted.
    """

    placement: Placement
    elements: Mapping[str, float]
    floats: dict[str, float] = field(default_factory=dict)
    integers: dict[str, float] = field(default_factory=dict)
    conversions: dict[str, float] = field(default_factory=dict)

    def learn(self, profile: Profile, chosen: Collection[str]) -> None:
        """Take over what a profile says of a model in which the chosen parts computed on integers."""
        for name, part in self.placement.parts.items():
            known = self.integers if name in chosen else self.floats
            known[name] = sum(profile.units.get(g.output_name(node), 0.0) for node in part.nodes)
        if chosen:
            self.conversions.update(profile.conversions)

    def costs(self, penalties: Mapping[str, float] | None = None) -> Costs:
        """The costs of all placements, with what each part loses in accuracy."""
        lost = penalties or {}
        nodes = {
            name: Choice(self.floats[name], self.integers.get(name), lost.get(name, 0.0))
            for name in self.placement.parts
        }
        return Costs(nodes, [self._crossing(value, readers) for value, readers in self._values().items()])

    def _values(self) -> dict[ir.Value, list[Part]]:
        """The values between parts and others, with the parts that read them."""
        found: dict[ir.Value, list[Part]] = {value: [] for value in self.placement.makers}
        for part in self.placement.parts.values():
            for value in part.inputs:
                if g.constant(value) is None:
                    found.setdefault(value, []).append(part)
        return found

    def _crossing(self, value: ir.Value, readers: list[Part]) -> Crossing:
        heads = {part.node for part in readers}
        maker = self.placement.makers.get(value)
        seconds = self._conversion(value)
        # A layer that may give floats gives integers when a chosen part reads them; a crossing cannot say
        # both, so that its conversion counts as one.
        return Crossing(
            maker.name if maker else None,
            [part.name for part in readers],
            seconds,
            seconds,
            read_as_float=value.is_graph_output() or any(use.node not in heads for use in value.uses()),
            made_as_float=maker is not None and maker.kernel.float_result and not readers,
        )

    def _conversion(self, value: ir.Value) -> float:
        name = value.name or ""
        return self.conversions.get(name, self._rate * self.elements.get(name, 0.0))

    @property
    def _rate(self) -> float:
        rates = [s / self.elements[v] for v, s in self.conversions.items() if self.elements.get(v)]
        return float(np.median(rates)) if rates else _SECONDS_PER_ELEMENT
