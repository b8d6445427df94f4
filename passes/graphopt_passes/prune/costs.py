"""What layers cost, in the unit of ``--objective``: shares of the time, multiply-accumulates or numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from graphopt import graph as g
from graphopt.model import Model
from graphopt.precision import Task
from graphopt_passes.quantize.draft import macs_by_node, profiles_of


@dataclass(frozen=True)
class Times:
    """Where a model's time goes.

    Attributes:
        workloads: for each workload the seconds of each node, known by its first output.
    """

    workloads: tuple[Mapping[str, float], ...]

    @classmethod
    def of(cls, task: Task, model: Model) -> Times:
        """Profile a model."""
        return cls(tuple(profile.units for profile in profiles_of(task, model)))

    def milliseconds(self, nodes: Iterable[str]) -> float:
        """Of some nodes on the first workload."""
        return 1e3 * sum(self.workloads[0].get(node, 0.0) for node in nodes)

    def share(self, nodes: Iterable[str], whole: Times) -> float:
        """What some nodes take of the time of a whole model, the mean over all workloads.

        Small samples are mostly overhead and large ones mostly arithmetic; both count alike.
        """
        names = tuple(nodes)
        found = [
            sum(mine.get(name, 0.0) for name in names) / (sum(all_.values()) or 1.0)
            for mine, all_ in zip(self.workloads, whole.workloads, strict=True)
        ]
        return sum(found) / len(found)

    def whole_share(self, whole: Times) -> float:
        """What all nodes take of the time of a whole model, the mean over all workloads."""
        return self.share({name for one in self.workloads for name in one}, whole)


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
    def times(self) -> Times | None:
        """Of all nodes; None if nothing can be measured here."""
        return Times.of(self.task, self.task.model) if self.task.measured else None

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Numbers of the constants that a node reads; one that several read counts for the first."""
        seen: set[object] = set()
        found = {}
        for node in g.nodes(self.task.new_model().ir):
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
        return "time" if objective == "latency" and self.times is not None else "MACs"

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """What each node takes of all there is."""
        if self.unit == "time" and self.times is not None:
            names = {name for one in self.times.workloads for name in one}
            return {name: self.times.share([name], self.times) for name in names}
        found = self.numbers if self.unit == "weights" else self.macs
        total = sum(found.values()) or 1
        return {name: cost / total for name, cost in found.items()}
