"""Writes rounded weights into a copy of a float model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from graphopt import graph as g
from graphopt.model import Model
from graphopt.precision import Task
from graphopt_passes.exact.raise_opset import raised
from graphopt_passes.refit.linear import Linear
from graphopt_passes.weights.forms import FIRST_WITH_NIBBLES, STYLES, Packed, Writer
from graphopt_passes.weights.places import Place, places


@dataclass(frozen=True)
class Site:
    """A weight of the float model that can be blocks of integers.

    Attributes:
        name: of the weight.
        op: the operator of the first node that reads it.
        numbers: how many it holds.
        nodes: names of the first outputs of what reads it.
        ways: in which it is read.
        is_last: whether a product with it is what the model gives.
        kernel: whether kernels can compute with its blocks.
    """

    name: str
    op: str
    numbers: int
    nodes: tuple[str, ...]
    ways: frozenset[str]
    is_last: bool
    kernel: bool

    @classmethod
    def of(cls, place: Place) -> Site:
        """What is known of a place, once the model that it is of is gone."""
        nodes = tuple(g.output_name(reader.node) for reader in place.readers)
        ways = frozenset(reader.way for reader in place.readers)
        size = place.weight.tensor.size
        return cls(place.name, place.op, size, nodes, ways, place.is_last, place.has_kernel)


@dataclass(frozen=True)
class Builder:
    """Makes models with smaller weights of one float model.

    Attributes:
        task: what to work with.
        base: the float model, of an opset that knows what will be written.
        nibbles: why weights of 4 bits cannot be decoded at load; empty if they can.
    """

    task: Task
    base: Model
    nibbles: str

    @classmethod
    def of(cls, task: Task, bits: int) -> Builder:
        """For weights of 4 bits the opset is raised to the first with a type for them, if that can be."""
        base, run, reason = task.new_model(), task.new_run(), ""
        if bits == 4 or not STYLES[task.options.target].kernels:
            reason = raised(base, run, FIRST_WITH_NIBBLES) or ""
        return cls(task, base, reason)

    @property
    def has_kernels(self) -> bool:
        """Whether the target computes with blocks of integers as they are."""
        return STYLES[self.task.options.target].kernels

    def sites(self) -> tuple[list[Site], dict[str, str]]:
        """The weights that can be rounded, and why others cannot."""
        run = self.task.new_run()
        found = [Site.of(place) for place in places(self.base, run)]
        return found, {refusal.where.strip("'"): refusal.reason for refusal in run.journal.refusals}

    def build(self, packed: Iterable[tuple[str, Packed]], kernels: Collection[str] | None = None) -> Model:
        """The model with these weights, each written as it comes.

        Args:
            packed: weights by name.
            kernels: which of those that kernels can compute with do so; ``None`` for all.
        """
        model, run = self.base.clone(), self.task.new_run()
        known = {place.name: place for place in places(model, run)}
        writer = Writer(model, run)
        for name, weight in packed:
            place = known[name]
            if weight.shift is not None:
                Linear.of(place.readers[0].node).shift(model, run, weight.shift)
            self._write(writer, place, weight, kernels is None or name in kernels)
        return model

    def _write(self, writer: Writer, place: Place, packed: Packed, computes: bool) -> None:
        if not self.has_kernels:
            writer.dequantized(place, packed)
        elif computes and place.computes(packed.block):
            writer.kernels(place, packed)
        else:
            writer.decoded(place, packed)

    def writable(self, sites: Iterable[Site], bits: int) -> Iterator[Site]:
        """Those that can be written with so many bits."""
        allowed = STYLES[self.task.options.target].ways
        for site in sites:
            written = (site.kernel and self.has_kernels) or not self.nibbles or bits == 8
            if site.ways <= allowed and written:
                yield site
