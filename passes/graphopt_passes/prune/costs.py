"""What layers cost, in the unit of ``--objective``: shares of the time, multiply-accumulates or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from graphopt import graph as g
from graphopt.model import Model
from graphopt.precision import Task
from graphopt_passes.quantize.draft import macs_by_node, profiles_of


@dataclass(frozen=True)
class Costs:
    """Costs of the nodes of a task's model, known by their first outputs.

    Attributes:
        task: what to work with; nothing is run or profiled before it is asked for.
    """

    task: Task

    @cached_property
    def macs(self) -> Mapping[str, int]:
        """Multiply-accumulates of a run of the first sample; 0 where they are not known."""
        return macs_by_node(self.task.model, self.task)

    @cached_property
    def milliseconds(self) -> Mapping[str, float]:
        """Of a run of the first sample; empty if nothing can be measured here."""
        return milliseconds(self.task, self.task.model) if self.task.measured else {}

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Numbers of the constants that a node reads; one that several read counts for the first."""
        seen: set[object] = set()
        found = {}
        for node in g.nodes(self.task.model.ir):
            read = [value for value in node.inputs if g.constant(value) is not None and value not in seen]
            seen.update(read)
            found[g.output_name(node)] = sum(tensor.size for value in read if (tensor := g.constant(value)))
        return found

    @property
    def unit(self) -> str:
        """What is counted: the objective, in words; without times multiply-accumulates stand for them."""
        objective = self.task.options.objective
        if objective == "size":
            return "weights"
        return "time" if objective == "latency" and self.milliseconds else "MACs"

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """What each node takes of all there is."""
        by_unit = {"weights": "numbers", "time": "milliseconds", "MACs": "macs"}
        found: Mapping[str, float] = getattr(self, by_unit[self.unit])
        total = sum(found.values()) or 1.0
        return {name: cost / total for name, cost in found.items()}


def milliseconds(task: Task, model: Model) -> dict[str, float]:
    """Milliseconds of the nodes of a model on the first sample."""
    profiles = profiles_of(task, model)
    return {name: 1e3 * seconds for name, seconds in profiles[0].units.items()}
