"""The costs of a placement, from profiles of the float model and of drafts.

What a profile has not seen is estimated: converting a value costs so much per element, as the median of those
that were seen. Profiles of better drafts replace what was known, since a node's time depends on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.proof.profile import Profile
from graphopt_passes.quantize.partition import Choice, Costs, Crossing
from graphopt_passes.quantize.placement import Part, Placement

# Quantizing reads four bytes and writes one: about what memory gives, and every node takes its time to start.
_PER_ELEMENT = 0.1e-9
_PER_NODE = 1e-6


@dataclass
class Workload:
    """What is known of one workload.

    Attributes:
        elements: value name → elements.
        floats, integers: part → seconds.
        conversions: value name → seconds of what a draft converted.
        total: seconds of the float model.
    """

    elements: Mapping[str, float]
    floats: dict[str, float] = field(default_factory=dict)
    integers: dict[str, float] = field(default_factory=dict)
    conversions: dict[str, float] = field(default_factory=dict)
    total: float = 0.0

    def learn(self, parts: Iterable[Part], profile: Profile, chosen: Collection[str]) -> None:
        """Take over what a profile says of a model in which the chosen parts computed on integers."""
        for part in parts:
            known = self.integers if part.name in chosen else self.floats
            known[part.name] = sum(profile.units.get(g.output_name(node), 0.0) for node in part.nodes)
        if chosen:
            self.conversions.update(profile.conversions)
        else:
            self.total = profile.seconds

    def conversion(self, value: str) -> float:
        """Seconds of converting a value."""
        return self.conversions.get(value, _PER_NODE + self._rate * self.elements.get(value, 0.0))

    @property
    def _rate(self) -> float:
        rates = [s / self.elements[v] for v, s in self.conversions.items() if self.elements.get(v)]
        return float(np.median(rates)) if rates else _PER_ELEMENT


class Timing:
    """The costs of all placements: the mean over the workloads of shares of the float model's time."""

    def __init__(self, placement: Placement, elements: Sequence[Mapping[str, float]]) -> None:
        self._placement = placement
        self.workloads = [Workload(one) for one in elements]

    def learn(self, profiles: Sequence[Profile], chosen: Collection[str]) -> None:
        """Take over profiles, one per workload, of a model in which the chosen parts computed on integers."""
        for workload, profile in zip(self.workloads, profiles, strict=True):
            workload.learn(self._placement.parts.values(), profile, chosen)

    def costs(self, penalties: Mapping[str, float] | None = None) -> Costs:
        """The costs of all placements, with what each part loses in accuracy."""
        lost = penalties or {}
        nodes = {name: self._choice(name, lost.get(name, 0.0)) for name in self._placement.parts}
        return Costs(nodes, [self._crossing(value, readers) for value, readers in self._values().items()])

    def _choice(self, name: str, penalty: float) -> Choice:
        floats = self._mean(lambda workload: workload.floats[name])
        if any(name not in workload.integers for workload in self.workloads):
            return Choice(floats, None, penalty)
        return Choice(floats, self._mean(lambda workload: workload.integers[name]), penalty)

    def _mean(self, seconds: Callable[[Workload], float]) -> float:
        shares = [seconds(workload) / (workload.total or 1.0) for workload in self.workloads]
        return sum(shares) / len(shares)

    def _values(self) -> dict[ir.Value, list[Part]]:
        """The values between parts and others, with the parts that read them."""
        found: dict[ir.Value, list[Part]] = {value: [] for value in self._placement.makers}
        for part in self._placement.parts.values():
            for value in part.inputs:
                if g.constant(value) is None:
                    found.setdefault(value, []).append(part)
        return found

    def _crossing(self, value: ir.Value, readers: list[Part]) -> Crossing:
        heads = {part.node for part in readers}
        maker = self._placement.makers.get(value)
        share = self._mean(lambda workload: workload.conversion(value.name or ""))
        # A layer that may give floats gives integers when a chosen part reads them; a crossing cannot say
        # both, so that its conversion counts as one.
        return Crossing(
            maker.name if maker else None,
            [part.name for part in readers],
            share,
            share,
            read_as_float=value.is_graph_output() or any(use.node not in heads for use in value.uses()),
            made_as_float=maker is not None and maker.kernel.float_result and not readers,
        )
