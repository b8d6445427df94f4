"""Layers in another form that computes less: which ones, in which of its sizes, within what was asked for.

1. Moments of what a layer reads or makes give the error of every size that it may have.
2. Each layer alone is made as small as it may be, and the noise at the outputs of the model measured; other
   sizes make as much less of it as their errors are smaller.
3. Sizes are chosen together, so that the wanted share of the cost goes with the least noise (``allocation``).
4. What is built is profiled: a layer that takes longer in its new form keeps the old one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import onnx_ir as ir

from graphopt import graph as g
from graphopt.activations import Request
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.precision import Outcome, Task
from graphopt.report import PrunedLayer
from graphopt.runtime.moments import Gram
from graphopt_passes.prune.allocation import Choice, allocate
from graphopt_passes.prune.costs import Costs, Times
from graphopt_passes.prune.search import Attempt, searched
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.sensitivity import sensitivities
from graphopt_passes.quantize.shares import FITTING, Shares
from graphopt_passes.refit.linear import Linear, linear_layers
from graphopt_passes.refit.teacher import Teacher
from graphopt_passes.weights.constants import summed_up


class Fitted(Protocol):
    """One layer, for which the new form is fitted in every size."""

    @property
    def sizes(self) -> Sequence[int]:
        """From the smallest on."""

    def error(self, size: int) -> float:
        """‖y' − y‖² / ‖y‖² of its output."""

    def kept(self, size: int) -> float:
        """The share of its multiply-accumulates that is left."""

    def numbers(self, size: int) -> int:
        """How many are stored."""

    def told(self, size: int) -> str:
        """What is left, in words."""

    def write(self, layer: Linear, size: int, model: Model, run: Run) -> Sequence[str]:
        """Write it in place of a layer of the model; returns the names of what new nodes make."""


class Form(Protocol):
    """Another form of a layer."""

    @property
    def technique(self) -> str:
        """What the ledger calls it."""

    def refusal(self, layer: Linear, model: Model, run: Run) -> str:
        """Why a layer of a model cannot have it, or should not; empty if it may."""

    def request(self, layer: Linear, arrays: int) -> Request:
        """The moments that fitting needs, of so many samples."""

    def fitted(self, layer: Linear, moments: Gram | None) -> Fitted:
        """Fit it; without moments by the weight alone."""


def reformed(task: Task, form: Form, asked: float) -> Outcome:
    """The outcome of the stage that gives layers another form.

    Args:
        task: what to work with.
        form: what layers are to become.
        asked: the share of the cost that is to go, at most 1.
    """
    stage = _Stage(task, form, Teacher(task))
    return searched(task, stage.make, asked, saves_time=task.options.objective == "latency")


@dataclass
class _Stage:
    """One run; its methods stand in the order in which they are needed."""

    task: Task
    form: Form
    teacher: Teacher
    refused: dict[str, PrunedLayer] = field(default_factory=dict)

    @cached_property
    def costs(self) -> Costs:
        return Costs(self.task)

    @cached_property
    def layers(self) -> dict[str, Linear]:
        """The layers that may have the form, by name; refusals are noted."""
        found, run = {}, self.task.new_run()
        for one in self.teacher.found:
            if not isinstance(one, Linear):
                node, reason = one
                if reason := _told(node, reason):
                    self._refuse(g.output_name(node), node.op_type, reason)
            elif reason := self._refusal(one, run):
                self._refuse(one.name, one.op, reason)
            else:
                found[one.name] = one
        return found

    def _refusal(self, layer: Linear, run: Run) -> str:
        if run.keeps(layer.node):
            return "it is to be kept (--keep)"
        return self.form.refusal(layer, self.teacher.model, run)

    def _refuse(self, name: str, op: str, reason: str) -> None:
        self.refused[name] = PrunedLayer(name, op, self.form.technique, reason=reason)

    @cached_property
    def shares(self) -> Shares:
        """Samples to fit to, and to judge by; without data there are none."""
        return Shares.of(self.task)

    @cached_property
    def fitted(self) -> dict[str, Fitted]:
        """The form of each layer that anything is known of."""
        if self.task.options.data is None:
            return {name: self.form.fitted(layer, None) for name, layer in self.layers.items()}
        return dict(self._measured()) if self.layers else {}

    def _measured(self) -> Iterator[tuple[str, Fitted]]:
        task = self.task
        arrays = min(task.division.calibration_count, FITTING)
        wanted: dict[Request, list[Linear]] = {}
        for layer in self.layers.values():
            wanted.setdefault(self.form.request(layer, arrays), []).append(layer)
        for part in task.collector.stream(self.teacher.model, wanted, self.shares.fitting):
            for request, moments in part.found.items():
                assert isinstance(moments, Gram)
                yield from ((layer.name, self.form.fitted(layer, moments)) for layer in wanted[request])
            for request, why in part.absent.items():
                for layer in wanted[request]:
                    self._refuse(layer.name, layer.op, f"'{request.value}' cannot be watched: {why}")

    @cached_property
    def noises(self) -> dict[str, float]:
        """The noise at the outputs when a layer alone is as small as it may be."""

        def build(name: str) -> Draft:
            return Draft(self.task, self._build({name: self.fitted[name].sizes[0]})[0], frozenset())

        judging = None if self.task.options.data is None else self.shares.chooser(self.task).samples
        return sensitivities(self.task, build, list(self.fitted), self._unusable, judging)

    def _unusable(self, name: str, reason: str) -> None:
        self._refuse(name, self.layers[name].op, reason)

    @property
    def choices(self) -> dict[str, list[Choice[int]]]:
        """What each layer that may still change can become."""
        return {
            name: [self._choice(name, size) for size in fitted.sizes]
            for name, fitted in self.fitted.items()
            if name not in self.refused
        }

    def _choice(self, name: str, size: int) -> Choice[int]:
        fitted = self.fitted[name]
        saved = self.costs.shares.get(name, 0.0) * (1 - self._kept(fitted, size, name))
        most = fitted.error(fitted.sizes[0])
        return Choice(size, saved, self.noises[name] * fitted.error(size) / most if most else 0.0)

    def _kept(self, fitted: Fitted, size: int, name: str) -> float:
        """The share of a layer's cost that is left."""
        if self.costs.unit == "weights":
            return fitted.numbers(size) / self.layers[name].size
        return fitted.kept(size)

    def make(self, share: float) -> Attempt:
        """Give layers the form so that a share of the cost goes; less if some gain nothing."""
        chosen = allocate(self.choices, share)
        while chosen:
            model, added = self._build(chosen)
            times = Times.of(self.task, model) if self.task.measured else None
            slower = [name for name in chosen if times and self._told_slower(name, added[name], times)]
            if not slower:
                self._refit(model, chosen)
                return self._attempt(model, chosen, added, times)
            chosen = {name: size for name, size in chosen.items() if name not in slower}
        told = f"there is no layer for which it is worth it ({self.form.technique})"
        if self.refused and not self.layers:
            why = summed_up(row.reason for row in self.refused.values())
            told = f"no layer can have another form ({self.form.technique}): {why}"
        return Attempt(None, 0.0, tuple(self.refused.values()), told)

    def _refit(self, model: Model, chosen: Mapping[str, int]) -> None:
        """Fit what stands for changed layers, and all layers behind them, in place."""
        if self.teacher.refits:
            self.teacher.fit_behind(model, self.task.new_run(), dict.fromkeys(chosen))

    def _told_slower(self, name: str, added: Sequence[str], times: Times) -> bool:
        """Whether a layer that is to save time takes longer than it did; if so it is refused."""
        before = self.costs.times
        if before is None or self.task.options.objective != "latency":
            return False
        if times.share((name, *added), before) < before.share([name], before):
            return False
        told = f"it would take {times.milliseconds((name, *added)):.3g} ms"
        self._refuse(name, self.layers[name].op, f"{told}, and takes {before.milliseconds([name]):.3g} ms")
        return True

    def _build(self, chosen: Mapping[str, int]) -> tuple[Model, dict[str, Sequence[str]]]:
        """The model with these layers in the new form, and the names of what their new nodes make."""
        model, run = self.teacher.model.clone(), self.task.new_run()
        added = {}
        for layer in list(linear_layers(model)):
            if isinstance(layer, Linear) and layer.name in chosen:
                name = layer.name
                added[name] = self.fitted[name].write(layer, chosen[name], model, run)
        return model, added

    def _attempt(
        self,
        model: Model,
        chosen: Mapping[str, int],
        added: Mapping[str, Sequence[str]],
        times: Times | None,
    ) -> Attempt:
        costs = self.costs.shares
        share = sum(
            costs.get(name, 0.0) * (1 - self._kept(self.fitted[name], size, name))
            for name, size in chosen.items()
        )
        rows = [self._row(name, size, added[name], times) for name, size in chosen.items()]
        idle = [self._whole(name) for name in self.layers if name not in chosen and name not in self.refused]
        layers = f"{len(chosen)} layer{'s' * (len(chosen) > 1)}"
        told = f"{share:.0%} of the {self.costs.unit} in {layers} ({self.form.technique})"
        return Attempt(model, share, (*rows, *idle, *self.refused.values()), told, self.teacher.notes)

    def _row(self, name: str, size: int, added: Sequence[str], times: Times | None) -> PrunedLayer:
        layer, fitted, macs = self.layers[name], self.fitted[name], self.costs.macs.get(name, 0)
        return PrunedLayer(
            name,
            layer.op,
            self.form.technique,
            fitted.told(size),
            fitted.error(size),
            layer.size,
            fitted.numbers(size),
            macs or None,
            round(macs * fitted.kept(size)) or None,
            self.costs.times.milliseconds([name]) if self.costs.times else None,
            times.milliseconds((name, *added)) if times else None,
        )

    def _whole(self, name: str) -> PrunedLayer:
        layer = self.layers[name]
        reason = "others lose less for what they save"
        return PrunedLayer(name, layer.op, self.form.technique, numbers_before=layer.size, reason=reason)


def _told(node: ir.Node, reason: str) -> str:
    """The reason against a layer; empty for a product of two values that are computed, which is none."""
    weight = node.inputs[1]
    computed = weight is None or not (weight.is_initializer() or g.constant(weight) is not None)
    return "" if computed else reason
