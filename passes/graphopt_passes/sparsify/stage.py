"""``--sparsity``: weights that become zero, within the accuracy budget.

1. Each layer's error at several densities, and once the noise that it makes at the outputs, give the density
   of each (``curves``), so that the share that was asked for goes with the least noise.
2. Layer by layer, in the order of the graph: a mask, and what is left fitted to what the layer gave in the
   model before, from what it reads now. Layers that stay dense are fitted as well: they make up for those
   before them.
3. The contract of all pruning (:mod:`graphopt_passes.prune.search`) decides whether that is the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from graphopt.joint import side_by_side
from graphopt.legacy import as_ir4
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.precision import Outcome, Task
from graphopt.pruning import Amount
from graphopt.report import PrunedLayer
from graphopt_passes.prune.allocation import Choice, allocate
from graphopt_passes.prune.search import Attempt, searched
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.sensitivity import sensitivities
from graphopt_passes.refit.moments import RowsAbove
from graphopt_passes.refit.recurrent import Layer, fittable
from graphopt_passes.refit.solve import Fit
from graphopt_passes.refit.teacher import Teacher
from graphopt_passes.sparsify.curves import DENSITIES, blind, choices, curve
from graphopt_passes.sparsify.fitting import Fitter, Sparse, unfitted
from graphopt_passes.sparsify.gains import compressed, gain
from graphopt_passes.sparsify.layers import TECHNIQUE, candidates
from graphopt_passes.sparsify.patterns import Anywhere, Groups, Pattern

_BY_SELECTION = {"obs": "obs", "lasso": "obs", "energy": "energy", "l1": "magnitude", "l2": "magnitude"}
_REFERENCE = 0.3  # the density at which noise is measured


def prune(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    options = task.options
    amount = options.amounts[TECHNIQUE]
    stage = Sparsifier(task, amount, Fitter(_BY_SELECTION[options.select], options.refit))
    return searched(task, stage.make, amount.share or 1 - DENSITIES[-1], saves_time=False)


@dataclass(frozen=True)
class _Left:
    """What came of a layer: the weights that are left, and its error as in :class:`.Sparse`."""

    left: int
    error: float


@dataclass
class Sparsifier:
    """Makes a task's model sparse to any share.

    Attributes:
        task: what to work on and with.
        amount: for its pattern.
        fitter: how layers are made sparse.
        refused: the rows of what cannot become sparse.
        stays: why other layers stay dense, by name.
    """

    task: Task
    amount: Amount
    fitter: Fitter
    refused: list[PrunedLayer] = field(default_factory=list)
    stays: dict[str, str] = field(default_factory=dict)

    @cached_property
    def teacher(self) -> Teacher:
        """The model that there was."""
        return Teacher(self.task)

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers that may become sparse, by name; those that may not are noted."""
        teacher, run = self.teacher, self.task.new_run()
        found, refused = candidates(teacher.model, teacher.found, run, self.amount)
        self.refused += refused
        return found

    @cached_property
    def _fitter(self) -> Fitter:
        """How layers are made sparse with the samples that there are."""
        return replace(self.fitter, refit=self.fitter.refit and self.teacher.refits)

    def make(self, share: float) -> Attempt:
        """Make so large a share of the weights zero, or more if single layers allow nothing else."""
        if not self.layers:
            return Attempt(None, 0.0, tuple(self.refused), "no layer can be made sparse")
        patterns = self._patterns(share)
        student, run = self.task.model.clone(), self.task.new_run()
        with as_ir4(student, run.journal):
            done = dict(self._fitted(student, run, patterns))
        return self._attempt(student, run, patterns, done)

    # How much of which layer.

    @property
    def _total(self) -> int:
        return sum(layer.size for layer in self.layers.values())

    def _patterns(self, share: float) -> dict[str, Pattern]:
        """What stays of each layer that becomes sparse."""
        densities = allocate(self._choices, share)
        if self.amount.group:
            return dict.fromkeys(densities, Groups(self.amount.kept, self.amount.group))
        removed = sum((1 - kept) * self.layers[name].size for name, kept in densities.items())
        less = min(share * self._total / removed, 1.0) if removed else 1.0  # the last step is a little long
        return {name: Anywhere(1 - less * (1 - kept)) for name, kept in densities.items()}

    @cached_property
    def _choices(self) -> Mapping[str, Sequence[Choice[float]]]:
        """What can become of each layer, and what noise that makes."""
        errors, variants = {}, {}
        for name, found, variant in self._studied():
            errors[name], variants[name] = found, variant

        def build(name: str) -> Draft:
            return Draft(self.task, variants[name], frozenset())

        noises = sensitivities(self.task, build, list(errors), self.stays.__setitem__, self.teacher.held)
        return {
            name: list(self._densities(errors[name], self.layers[name].size / self._total, noises[name]))
            for name in errors
            if name not in self.stays
        }

    def _densities(self, errors: dict[float, float], size: float, noise: float) -> Iterator[Choice[float]]:
        if self.amount.group:
            density = self.amount.kept / self.amount.group
            yield Choice(density, size * (1 - density), noise)
        else:
            yield from choices(errors, size, noise, _REFERENCE)

    def _studied(self) -> Iterator[tuple[str, dict[float, float], Model]]:
        """Each layer with its curve, and the model in which it alone is sparse."""
        pattern, samples = self._reference, self.teacher.samples
        if not samples:
            for name, layer in self.layers.items():
                errors = {} if self.amount.group else blind(layer)
                yield name, errors, self._variant(name, unfitted(layer, pattern).fit)
            return
        whole = self.teacher.model
        found = RowsAbove()(self.task.collector, side_by_side(whole, whole), self.layers.values(), samples)
        for layer, pairs in found:
            errors = {} if self.amount.group else curve(self._fitter, layer, pairs)
            yield layer.name, errors, self._variant(layer.name, self._fitter.rough(layer, pairs, pattern))

    @property
    def _reference(self) -> Pattern:
        amount = self.amount
        return Groups(amount.kept, amount.group) if amount.group else Anywhere(_REFERENCE)

    def _variant(self, name: str, fit: Fit) -> Model:
        model = self.teacher.model.clone()
        fittable(model)[name].write(model, self.task.new_run(), fit)
        return model

    # The layers, one after the other.

    def _fitted(
        self, student: Model, run: Run, patterns: Mapping[str, Pattern]
    ) -> Iterator[tuple[str, _Left]]:
        """Fit a student's layers in place; those that were made sparse, or fitted to make up for others."""
        known = self.layers.keys() | self.teacher.layers.keys()
        layers = {name: one for name, one in fittable(student).items() if name in known}
        if not self.teacher.samples:
            for name, pattern in patterns.items():
                yield name, _written(unfitted(layers[name], pattern), layers[name], student, run)
            return
        first = min(list(layers).index(name) for name in patterns)
        behind = list(layers.values())[first:]
        free = [layer for layer in behind if not run.keeps(layer.node)]
        todo = [layer for layer in free if self._fitter.refit or layer.name in patterns]
        for layer, pairs in self.teacher.in_order(student, todo, RowsAbove()):
            sparse = self._fitter.sparse(layer, pairs, patterns.get(layer.name))
            found = _written(sparse, layer, student, run)
            del pairs, sparse  # before the next are gathered
            yield layer.name, found

    # The ledger.

    def _attempt(
        self, model: Model, run: Run, patterns: Mapping[str, Pattern], done: Mapping[str, _Left]
    ) -> Attempt:
        rows = [self._row(name, patterns, done) for name in self.layers]
        zeros = sum(self.layers[name].size - done[name].left for name in patterns if name in done)
        share = zeros / self._total
        layers = f"{len(patterns):,} layer{'s' * (len(patterns) != 1)}"
        told = f"{share:.1%} of {self._total:,} weights in {layers}"
        told_gain = gain(self._compressed, compressed(model), self.task.options.target, self.amount)
        notes = (told_gain, *self.teacher.notes, *run.journal.notes)
        return Attempt(model, share, (*rows, *self.refused), told, notes)

    @cached_property
    def _compressed(self) -> int:
        return compressed(self.task.model)

    def _row(self, name: str, patterns: Mapping[str, Pattern], done: Mapping[str, _Left]) -> PrunedLayer:
        layer, found = self.layers[name], done.get(name)
        if name not in patterns or found is None:
            unseen = "" if name in self._choices else "what it reads could not be seen"
            reason = self.stays.get(name) or unseen or "others lose less"
            return PrunedLayer(name, layer.op, TECHNIQUE, numbers_before=layer.size, reason=reason)
        return PrunedLayer(
            name,
            layer.op,
            TECHNIQUE,
            f"{found.left:,} of {layer.size:,} weights",
            found.error,
            layer.size,
            layer.size,
        )


def _written(sparse: Sparse, layer: Layer, student: Model, run: Run) -> _Left:
    """Write a layer's new weights; they stay in the file."""
    layer.write(student, run, sparse.fit)
    return _Left(int(np.count_nonzero(sparse.fit.rows)), sparse.error)
