"""Drafts: one float model with different parts on integers, as files that can be run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.legacy import to_ir4
from graphopt.model import Model
from graphopt.precision import Task
from graphopt.proof.executed import Executed
from graphopt.proof.profile import Profile, profile
from graphopt.runtime.values import Tensor
from graphopt_passes.quantize.audit import Audit, audit
from graphopt_passes.quantize.fit import nearest
from graphopt_passes.quantize.fusable import STYLES
from graphopt_passes.quantize.insert_qdq import drop_unused, insert_qdq
from graphopt_passes.quantize.keep_floats import keep_floats
from graphopt_passes.quantize.placement import Placement, consistent
from graphopt_passes.quantize.ranges import Range
from graphopt_passes.quantize.scheme import Grid, IntegerWeight, Scheme
from graphopt_passes.quantize.spelled import Whole, assemble

PROFILE_S = 1.0


@dataclass
class Draft:
    """A quantized model.

    Attributes:
        model: with its QuantizeLinear and DequantizeLinear nodes.
        nodes: what computes on integers.
        dynamic: those of them whose activations are quantized as they come.
        path: its file.
    """

    task: Task
    model: Model
    nodes: frozenset[str]
    dynamic: frozenset[str] = frozenset()

    @cached_property
    def path(self) -> Path:
        """Its file."""
        return self.task.write(self.model)

    def discard(self) -> None:
        """Remove the file; it is written anew when it is needed again."""
        if "path" in self.__dict__:
            self.path.unlink()
            del self.path

    @cached_property
    def audit(self) -> Audit:
        """What the runtime makes of it."""
        task = self.task
        return audit(
            Executed.of(self.model, worker=task.worker, target=task.target, threads=task.options.threads)
        )

    @cached_property
    def profiles(self) -> list[Profile]:
        """Where its time goes."""
        return profiles_of(self.task, self.model)


def profiles_of(task: Task, model: Model) -> list[Profile]:
    """Where a model's time goes, on each workload."""
    how = partial(profile, worker=task.worker, target=task.target, threads=task.options.threads)
    return [how(model, sample, budget_s=PROFILE_S) for sample in task.workloads]


@dataclass(eq=False)
class Drafts:
    """Makes drafts of one float model.

    Attributes:
        task: what to work with.
        model: the float model, of an opset that can be quantized.
        ranges: value name → range.
        bits: of weights.
        smoothed: whether channels of the model were made more alike.
        wholes: operators that the model spells out, see :mod:`.spelled`.
        weights, biases: of all drafts made from now on, see :class:`Scheme`.
        plain: weights rounded to nearest, for the rest; they are made when they are first needed.
    """

    task: Task
    model: Model
    ranges: Mapping[str, Range]
    bits: int
    smoothed: bool = False
    wholes: Mapping[str, Whole] = field(default_factory=dict)
    weights: Mapping[str, IntegerWeight] = field(default_factory=dict)
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    plain: dict[str, IntegerWeight] = field(default_factory=dict)

    @cached_property
    def grids(self) -> Mapping[str, Grid]:
        """The grids of the ranges."""
        style = STYLES[self.task.options.target]
        how = {"signed": style.signed, "symmetric": style.symmetric}
        return {name: Grid.of(found.low, found.high, **how) for name, found in self.ranges.items()}

    def build(self, nodes: Collection[str]) -> Draft:
        """The draft with these parts on integers, less those that would only convert."""
        model = self.model.clone()
        run = self.task.new_run()
        placement = Placement(model, run)
        chosen = consistent(placement, [name for name in nodes if name in placement.parts])
        if assemble(model, self.wholes, chosen):
            placement = Placement(model, run)
        rest = [name for name in chosen if name not in self.weights and name not in self.plain]
        self.plain.update(nearest(placement, rest, self.bits).weights)
        scheme = Scheme(chosen, self.grids, {**self.plain, **self.weights}, self.biases)
        integers = insert_qdq(model, run, placement, scheme, self.bits)
        if STYLES[self.task.options.target].channel_steps:
            keep_floats(model, run, integers)
        drop_unused(model)
        return Draft(self.task, model, chosen)


def layers_of(placement: Placement, nodes: Collection[str]) -> list[str]:
    """The parts that multiply with weights."""
    return [n for n in nodes if placement.parts[n].kernel.role == "layer"]


def macs_share(model: Model, task: Task, nodes: Collection[str]) -> float | None:
    """The share of a float model's multiply-accumulates that these nodes do; None if none are known."""
    macs = macs_by_node(model, task)
    total = sum(macs.values())
    return sum(macs.get(name, 0) for name in nodes) / total if total else None


def macs_by_node(model: Model, task: Task) -> dict[str, int]:
    """Multiply-accumulates of a run of the first sample, by the node's first output; 0 if not known."""
    from graphopt.cost import macs_of
    from graphopt.inspection import fix_dims

    fixed = model.clone()
    to_ir4(fixed)
    fix_dims(fixed.ir, {n: v.shape for n, v in task.workloads[0].items() if isinstance(v, Tensor)})
    shapes = task.new_run().shapes(fixed)
    return {g.output_name(node): macs_of(node, shapes) or 0 for node in g.nodes(fixed.ir)}
