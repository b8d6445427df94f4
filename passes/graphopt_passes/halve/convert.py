"""Make a model half, as far as operators, kernels and the caller allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt import graph as g
from graphopt.legacy import to_ir4
from graphopt.pipeline import Run
from graphopt_passes.halve.emulate import Rounder
from graphopt_passes.halve.opset import raise_for
from graphopt_passes.halve.partition import Partition
from graphopt_passes.halve.signatures import HALVES
from graphopt_passes.halve.units import Units
from graphopt_passes.halve.weights import Weights
from graphopt_passes.halve.writer import Writer

if TYPE_CHECKING:
    from graphopt.model import Model


@dataclass(frozen=True)
class Halved:
    """What was done.

    Attributes:
        nodes: first outputs of the nodes that compute in half.
        able: first outputs of the nodes that could.
        casts: how many Casts were inserted.
    """

    nodes: frozenset[str]
    able: frozenset[str]
    casts: int


def halve(  # noqa: PLR0913 - what stays as it is, is given by keyword
    model: Model,
    run: Run,
    half: str,
    kept: Collection[str] = (),
    *,
    keep_io: bool = True,
    sizes: Mapping[str, float] | None = None,
    emulate: bool = False,
    weights: Weights | None = None,
) -> Halved:
    """Make a model half in place, as far as operators, kernels and ``kept`` allow.

    Args:
        model: keeps the names of its inputs, outputs and nodes; its opset is raised where only that lets
            operators be bfloat16.
        run: makes constants, and takes a note if the opset was raised.
        half: ``float16`` or ``bfloat16``.
        kept: first outputs of nodes that stay float.
        keep_io: leave the types of inputs and outputs; else its float tensors become half too.
        sizes: elements of values by name, to place Casts where they cost least; by default from the shapes.
        emulate: leave all types as they are, and round what would be half, see :class:`Rounder`.
        weights: converted before, for a clone of this model.

    Raises:
        SystemRefusedError: the disk of the temporary folder, where new weights lie, is full.
    """
    to_ir4(model)
    raise_for(model, run, half)
    kept = {*kept, *(g.output_name(node) for node in g.nodes(model.ir) if run.keeps(node))}
    units = Units.of(model.ir, half, keep_io=keep_io)
    chosen = Partition(units, kept, run.shapes(model), sizes or {}).halves()
    names = {unit: g.output_name(node) for unit, node in units.nodes.items()}  # some change below
    kind = Rounder if emulate else Writer
    writer = kind(model, run, HALVES[half], units, chosen, weights or Weights(half, run.spill))
    writer.write()
    halves = frozenset(name for unit, name in names.items() if unit in chosen)
    return Halved(halves, frozenset(names.values()), writer.casts)
