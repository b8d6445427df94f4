"""Where a model's time goes: ONNX Runtime's times of executed nodes, given to the nodes of the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.model import Model
from graphopt.proof.executed import Executed, named
from graphopt.runtime.values import Feeds
from graphopt.runtime.worker import Worker
from graphopt.target import CPU, Target

if TYPE_CHECKING:
    from graphopt.runtime.profile import NodeTime

BUDGET_S = 1.0


@dataclass(frozen=True)
class Profile:
    """Seconds of one run.

    Attributes:
        units: by node of the model, known by its first output's name. A fusion's time is that of its Conv,
            Gemm, MatMul or recurrent node (shared evenly among several), or else of its last node. Nodes that
            are missing cost nothing of their own: they were fused or folded.
        conversions: by value of the model: quantizing, dequantizing and reordering it, for all its readers.
        unattributed: of nodes that could not be traced back.
    """

    units: Mapping[str, float]
    conversions: Mapping[str, float]
    unattributed: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self.units.values()) + sum(self.conversions.values()) + self.unattributed


def profile(  # noqa: PLR0913 - the options of a measurement are given by keyword
    model: Model,
    sample: Feeds,
    *,
    worker: Worker,
    target: Target = CPU,
    threads: int = 0,
    budget_s: float = BUDGET_S,
) -> Profile:
    """Run a model on one sample for ``budget_s`` seconds and tell its time by nodes.

    Raises:
        WorkerError: ONNX Runtime does not run it.
    """
    with worker.pool.written(named(model)) as path:
        executed = Executed.of_file(model, path, worker=worker, target=target, threads=threads)
        return attribute(executed, worker.profile(path, sample, target, threads, budget_s))


def attribute(executed: Executed, times: Iterable[NodeTime]) -> Profile:
    """Give the times of executed nodes, known by their names, to the nodes and values of the model."""
    nodes = {node.name: node for node in executed.nodes()}
    units: dict[str, float] = defaultdict(float)
    conversions: dict[str, float] = defaultdict(float)
    unattributed = 0.0
    for time in times:
        node = nodes.get(time.name)
        value = executed.converted(node) if node is not None and executed.converts(node) else None
        owners = executed.units(node) if node is not None and value is None else ()
        if value is not None:
            conversions[executed.float_name(value)] += time.seconds
        for owner in owners:
            units[executed.float_name(owner)] += time.seconds / len(owners)
        if value is None and not owners:
            unattributed += time.seconds
    return Profile(dict(units), dict(conversions), unattributed)
