"""The model that there was, and what layers of a changed one, the student, are fitted to: what it gave.

Layers behind a change are fitted one after the other, in the order of the graph, from what they read now.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from graphopt.joint import side_by_side
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.precision import Task
from graphopt.runtime.accumulators import Array
from graphopt.runtime.pairs import RowPairs, Shares
from graphopt.samples.batches import batched
from graphopt.samples.sampling import Sample, Samples
from graphopt.samples.shelf import shelved
from graphopt_passes.refit.finite import nonfinite
from graphopt_passes.refit.kept import Kept, fit_kept
from graphopt_passes.refit.linear import Linear, linear_layers
from graphopt_passes.refit.moments import HELD_EVERY, RowsAbove
from graphopt_passes.refit.recurrent import AnyLayer, Layer, fittable
from graphopt_passes.refit.solve import Fit
from graphopt_passes.refit.walk import Found, Gather, Walk

MOST_COLUMNS = 4608
"""Of a layer that is fitted by its moments, which take 170 MB; wider ones are by rows."""

MOST_SAMPLES = 2048
"""A layer that is read once per sample has as many rows."""

_BATCH = 32


@dataclass(frozen=True)
class Fitted:
    """A layer of a student with the weight that was written to it, which is in no memory until it is read.

    Attributes:
        layer: the student's.
        bias: that belongs to the weight; behind a MatMul it is part of a constant of an Add.
    """

    layer: Layer
    bias: Array

    def fit(self) -> Fit:
        """Both, the weight float32."""
        return Fit(self.layer.rows().reshape(*self.bias.shape, -1), self.bias)


@dataclass(frozen=True)
class Teacher:
    """The model of a task, whose weights are constants; it is not changed.

    Attributes:
        task: what to work with.
    """

    task: Task

    @cached_property
    def model(self) -> Model:
        """The model itself."""
        return self.task.new_model()

    @cached_property
    def layers(self) -> dict[str, Linear]:
        """All its layers that multiply with a constant and can be fitted, by name."""
        return {one.name: one for one in self.found if isinstance(one, Linear)}

    @cached_property
    def found(self) -> Sequence[Linear | tuple[ir.Node, str]]:
        """As :func:`.linear_layers`; constants of NaN or infinity are a reason, too."""
        return [_finite(one) for one in linear_layers(self.model)]

    @cached_property
    def samples(self) -> Sequence[Sample]:
        """Those of the calibration, evenly spread, in a file of the worker's folder; none without data.

        Where the batch is dynamic a sample is many. None is set apart to choose with: sums over them keep a
        part of their own for that (``Pairs.held``).
        """
        if self.task.options.data is None:
            return []
        count = self.task.division.calibration_count
        some = itertools.islice(self.task.division.calibration, None, None, max(-(-count // MOST_SAMPLES), 1))
        few = count < 8 * _BATCH  # whole batches are held out
        return shelved(batched(self.model.ir, some, 1 if few else _BATCH), self.task.worker.folder)

    @cached_property
    def refits(self) -> bool:
        """Whether layers are fitted: a part of the samples has to judge what is fitted to the others."""
        return self.task.options.refit and len(self.samples) >= HELD_EVERY

    @cached_property
    def held(self) -> Samples | None:
        """The samples that judge what is fitted to the others; None if nothing is fitted."""
        mine = self.samples[HELD_EVERY - 1 :: HELD_EVERY] if self.refits else []
        return Samples(self.task.division.calibration.source, lambda: iter(mine)) if mine else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Says so if there are samples, but too few to fit anything."""
        if self.refits or not self.task.options.refit or self.task.options.data is None:
            return ()
        few = len(self.samples)
        told = "what is left is not fitted to make up for what is removed: that takes at least"
        return (f"{told} {HELD_EVERY} samples that calibrate, and there {'is' if few == 1 else 'are'} {few}",)

    def pairs(self, student: Model, layers: Iterable[Layer]) -> Iterator[tuple[Layer, Shares | RowPairs]]:
        """Sums over what layers of a student read, and what they are to give, or rows of very many columns.

        Layers that are not seen, and all without samples, are left out.
        """
        seen = [layer for layer in layers if is_seen(layer)]
        if seen and self.samples:
            gather = RowsAbove(MOST_COLUMNS)
            yield from gather(self.task.collector, side_by_side(self.model, student), seen, self.samples)

    def in_order(
        self, student: Model, layers: Sequence[AnyLayer], gather: Gather[AnyLayer, Found]
    ) -> Iterator[tuple[AnyLayer, Found]]:
        """Layers of a student with what was gathered for each; see :meth:`.Walk.through`."""
        if self.samples:
            walk = Walk(self.task.collector, self.model, self.samples, self.task.progress)
            yield from walk.through(student, layers, gather)

    def fit_behind(self, student: Model, run: Run, columns: Mapping[str, Kept | None]) -> dict[str, Fitted]:
        """Fit a student's layers in place, from the first that was changed on, from what they read now.

        Those that were not changed make up for those before them, unless they are to be kept (``--keep``).

        Args:
            student: see ``in_order``.
            run: the student's.
            columns: of the layers that were changed those that they still read, None for all.

        Returns:
            The layers that were fitted, by name.
        """
        mine = list(fittable(student).values())
        first = next((at for at, layer in enumerate(mine) if layer.name in columns), len(mine))
        todo = [
            layer
            for layer in mine[first:]
            if (layer.name in self.layers or layer.name in columns)
            and is_seen(layer)
            and not run.keeps(layer.node)
        ]
        fitted: dict[str, Fitted] = {}
        for layer, pairs in self.in_order(student, todo, RowsAbove(MOST_COLUMNS)):
            fit = fit_kept(layer, pairs, columns.get(layer.name))
            layer.write(student, run, fit)
            fitted[layer.name] = Fitted(layer, fit.bias)
            del pairs, fit  # before the next are gathered
        return fitted


def is_seen(layer: Layer) -> bool:
    """Whether what a layer reads can be gathered: sums of up to 4,608 columns, else rows of one group."""
    return layer.columns <= MOST_COLUMNS or (isinstance(layer, Linear) and layer.groups == 1)


def _finite(one: Linear | tuple[ir.Node, str]) -> Linear | tuple[ir.Node, str]:
    """A layer, or the reason if a constant of it is not finite."""
    if not isinstance(one, Linear):
        return one
    reason = nonfinite(value for value in one.node.inputs if value is not None)
    return (one.node, reason) if reason else one
