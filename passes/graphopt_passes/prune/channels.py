"""``--channels``: whole channels removed, those that the rest can make up for, from where it gains most.

1. The groups of channels that can only go together, and what is frozen and why (``axes``).
2. In each group an order of its units, and what is lost with each (``selection``); once, with half of the
   units gone, the noise that this makes at the outputs of the model.
3. Widths that kernels like, chosen for all groups together: the least noise for what is gained.
4. A group whose nodes take no less time when it is narrower stays as it is.
5. All layers behind the first cut are fitted again, in the order of the graph, from what they read now to
   what they gave before (``refit``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from graphopt import graph as g
from graphopt.legacy import to_ir4
from graphopt.model import Model
from graphopt.precision import Outcome, Task
from graphopt.report import PrunedLayer
from graphopt.runtime.pairs import Pairs
from graphopt.samples.sampling import Sample
from graphopt_passes.axes import Analysis, Group, groups, masked, shrink
from graphopt_passes.prune.allocation import Choice, allocate
from graphopt_passes.prune.costs import Costs, milliseconds
from graphopt_passes.prune.footprints import Footprint, left
from graphopt_passes.prune.readers import Columns, Reader, readers, unit_columns
from graphopt_passes.prune.search import Attempt, searched
from graphopt_passes.prune.selection import Order, ordered
from graphopt_passes.prune.widths import widths
from graphopt_passes.quantize.draft import Draft, macs_by_node
from graphopt_passes.quantize.sensitivity import sensitivities
from graphopt_passes.refit.kept import fit_kept
from graphopt_passes.refit.linear import Linear, linear_layers
from graphopt_passes.refit.moments import moments
from graphopt_passes.refit.samples import collector_of, fitting_samples
from graphopt_passes.refit.solve import Fit
from graphopt_passes.refit.waves import waves

TECHNIQUE = "channels"
MOST_COLUMNS = 4608  # of a reader whose moments are inverted; others are seen as if all inputs were alike
_STEPS = 30  # halvings of the target until the removed share is met
Counts = Mapping[str, int]  # units that stay, by group; others keep all


def prune(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    asked = task.options.amounts[TECHNIQUE].share or 1.0
    return searched(task, _Stage(task).make, asked, saves_time=task.options.objective == "latency")


@dataclass
class _Stage:
    """One run; its methods stand in the order in which they are needed."""

    task: Task
    stays: dict[str, str] = field(default_factory=dict)  # group → why it is not narrower

    @cached_property
    def base(self) -> Model:
        """The task's model, whose weights are constants."""
        model = self.task.model.clone()
        to_ir4(model)
        return model

    @cached_property
    def analysis(self) -> Analysis:
        return groups(self.base, self.task.options.keep)

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The groups that may be narrower, by a name of their own."""
        found: dict[str, Group] = {}
        for group in self.analysis.groups:
            name = group.name
            while name in found:
                name += "'"
            found[name] = group
        return found

    @cached_property
    def layers(self) -> dict[str, Linear]:
        """All layers that multiply with a constant, by name."""
        return {one.name: one for one in linear_layers(self.base) if isinstance(one, Linear)}

    @cached_property
    def costs(self) -> Costs:
        return Costs(self.task)

    @cached_property
    def footprints(self) -> dict[str, Footprint]:
        return {name: Footprint.of(group) for name, group in self.groups.items()}

    @cached_property
    def samples(self) -> Sequence[Sample]:
        """What layers are fitted to; none without data."""
        return fitting_samples(self.task) if self.task.options.data is not None else []

    def read_by(self, group: Group) -> list[Linear]:
        """The layers whose weight sums over a group."""
        ports = [member.port for member in group.consumers if member.port is not None]
        names = [g.output_name(port.node) for port in ports if port.index == 1]
        return [self.layers[name] for name in names if name in self.layers]

    # Which units, and what they cost.

    @cached_property
    def orders(self) -> dict[str, Order]:
        """In which order the units of each group go; the models that tell the noise of half are made too."""
        found: dict[str, Order] = {}
        for names in self._batches():
            layers = {one.name: one for name in names for one in self._seen(self.groups[name])}
            pairs = dict(self._pairs(self.base, list(layers.values())))
            for name in names:
                self.task.progress("choosing channels", len(found), len(self.groups))
                found[name] = self._order(self.groups[name], pairs)
                self.halves[name] = self._half(self.groups[name], found[name], pairs)
        return found

    halves: dict[str, Model] = field(default_factory=dict)

    def _seen(self, group: Group) -> list[Linear]:
        """The readers of a group whose moments are gathered."""
        return [one for one in self.read_by(group) if one.columns <= MOST_COLUMNS] if self.samples else []

    def _batches(self) -> Iterator[list[str]]:
        """Groups whose readers' moments fit into memory together."""
        batch, size = list[str](), 0
        for name, group in self.groups.items():
            need = sum(3 * 8 * one.groups * one.columns**2 for one in self._seen(group))
            if batch and size + need > self.task.options.calibration_memory:
                yield batch
                batch, size = [], 0
            batch, size = [*batch, name], size + need
        if batch:
            yield batch

    def _pairs(self, student: Model, layers: Sequence[Linear]) -> Iterator[tuple[str, Pairs]]:
        """Sums over what layers of a student read, and what they give in the model that there was."""
        if layers and self.samples:
            found = moments(collector_of(self.task), self.base, student, layers, self.samples)
            yield from ((layer.name, pairs) for layer, pairs in found)

    def _order(self, group: Group, pairs: Mapping[str, Pairs]) -> Order:
        found: list[Reader] = []
        for layer in self.read_by(group):
            known = pairs.get(layer.name)
            found += readers(group, layer, known.fit if known is not None else None)
        return ordered(found, _norms(group, self.task.options.select), self.task.options.select)

    def _half(self, group: Group, order: Order, pairs: Mapping[str, Pairs]) -> Model:
        """The model with half of a group's units without effect, its readers fitted to that."""
        kept = order.kept(group.width - group.width // 2)
        model, run = masked(self.base, {group: kept}), self.task.new_run()
        for layer in linear_layers(model):
            if isinstance(layer, Linear) and layer.name in pairs and self.task.options.refit:
                mine = self._columns(self.layers[layer.name], {group: kept})
                if mine is not None:
                    layer.write(model, run, fit_kept(layer, pairs[layer.name], mine)[0])
        return model

    def _columns(self, layer: Linear, kept: Mapping[Group, Columns]) -> Columns | None:
        """The columns that a layer still reads; None if that is all of them."""
        gone = [
            unit_columns(group, layer)[np.setdiff1d(np.arange(group.width), units)].reshape(-1)
            for group, units in kept.items()
            if any(one.name == layer.name for one in self.read_by(group))
        ]
        return np.setdiff1d(np.arange(layer.columns), np.concatenate(gone)) if gone else None

    @cached_property
    def noises(self) -> dict[str, float]:
        """The noise at the outputs with half of a group's units gone."""
        _ = self.orders
        return sensitivities(
            self.task, lambda name: Draft(self.task, self.halves[name], frozenset()), list(self.groups)
        )

    # How many of which group.

    @property
    def choices(self) -> dict[str, list[Choice[int]]]:
        """What each group that may still be narrower can become, as a number of units."""
        return {
            name: [self._choice(name, count) for count in widths(group)]
            for name, group in self.groups.items()
            if name not in self.stays
        }

    def _choice(self, name: str, count: int) -> Choice[int]:
        group, order = self.groups[name], self.orders[name]
        half = order.lost[group.width // 2]
        noise = self.noises[name] * order.lost[group.width - count] / half if half else 0.0
        return Choice(count, 1 - self._left({name: count}), noise)

    def _left(self, counts: Counts) -> float:
        """What is left of the cost, as a share."""
        factors = (
            self.footprints[name].factors(1 - count / self.groups[name].width)
            for name, count in counts.items()
        )
        return left(self.costs.shares, factors)

    def _removed(self, counts: Counts) -> float:
        """What ``--channels`` counts: channels, or with another objective than time what that counts."""
        if self.task.options.objective != "latency":
            return 1 - self._left(counts)
        gone = sum(self.groups[name].width - count for name, count in counts.items())
        return gone / sum(group.width for group in self.groups.values())

    def _counts(self, share: float) -> Counts:
        """Widths with which so large a share goes, or the most that can."""
        choices = self.choices
        most = sum(max(one.saved for one in mine) for mine in choices.values() if mine)
        low, high, best = 0.0, most, allocate(choices, most)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            counts = allocate(choices, middle)
            if self._removed(counts) >= share:
                best, high = counts, middle
            else:
                low = middle
        return best

    def make(self, share: float) -> Attempt:
        """Remove so large a share of the channels, or the most that can be."""
        while counts := self._counts(share):
            kept = {self.groups[name]: self.orders[name].kept(count) for name, count in counts.items()}
            times = milliseconds(self.task, shrink(self.base, kept)) if self._saves_time else {}
            if not [name for name in counts if times and self._gains_nothing(name, times)]:
                return self._attempt(self._fitted(kept), counts, times)
        told = "no channel can be removed" if not self.groups else "no group of channels is worth it"
        return Attempt(None, 0.0, tuple(self._refusals({})), told)

    @property
    def _saves_time(self) -> bool:
        return self.task.measured and self.task.options.objective == "latency"

    def _gains_nothing(self, name: str, times: Mapping[str, float]) -> bool:
        """Whether the nodes of a group take as long as before, although it is narrower; it stays then."""
        before, after = (_time(self.footprints[name].nodes, one) for one in (self.costs.milliseconds, times))
        if after < before:
            return False
        self.stays[name] = f"its nodes would take {after:.3g} ms, and take {before:.3g} ms"
        return True

    # The model.

    def _fitted(self, kept: Mapping[Group, Columns]) -> Model:
        """The model without these units, its layers fitted."""
        final, run = self.base.clone(), self.task.new_run()
        if self.samples and self.task.options.refit:
            fits = self._fits(kept)
            for layer in list(linear_layers(final)):
                if isinstance(layer, Linear) and layer.name in fits:
                    layer.write(final, run, fits[layer.name])
        again = groups(final, self.task.options.keep).groups
        same = dict(zip(self.analysis.groups, again, strict=True))
        return shrink(final, {same[group]: units for group, units in kept.items()}, run.spill)

    def _fits(self, kept: Mapping[Group, Columns]) -> dict[str, Fit]:
        """Weights for what layers read now, in the order of the graph; zero where they read nothing more."""
        student, run = masked(self.base, kept), self.task.new_run()
        columns = {name: self._columns(layer, kept) for name, layer in self.layers.items()}
        mine = {one.name: one for one in linear_layers(student) if isinstance(one, Linear)}
        first = next((at for at, name in enumerate(mine) if columns[name] is not None), len(mine))
        fits: dict[str, Fit] = {}
        steps = waves(student, list(mine.values())[first:])
        for done, wave in enumerate(steps):
            self.task.progress("fitting layers", done, len(steps))
            seen = [layer for layer in wave if layer.columns <= MOST_COLUMNS]
            for name, pairs in self._pairs(student, seen):
                read = columns[name]
                some = np.arange(mine[name].columns) if read is None else read
                fits[name], _ = fit_kept(mine[name], pairs, some)
                mine[name].write(student, run, fits[name])
        return fits

    # The ledger.

    def _attempt(self, model: Model, counts: Counts, times: Mapping[str, float]) -> Attempt:
        share = self._removed(counts)
        numbers, macs = _numbers(model), macs_by_node(model, self.task)
        rows = [self._row(name, count, numbers, macs, times) for name, count in counts.items()]
        gone = sum(self.groups[name].width - count for name, count in counts.items())
        whole = sum(group.width for group in self.groups.values())
        saved = f"{1 - self._left(counts):.0%} of the {self.costs.unit}"
        told = f"{gone:,} of {whole:,} channels that can be, about {saved}"
        return Attempt(model, share, (*rows, *self._refusals(counts)), told)

    def _row(
        self,
        name: str,
        count: int,
        numbers: Mapping[str, int],
        macs: Mapping[str, int],
        times: Mapping[str, float],
    ) -> PrunedLayer:
        group, nodes = self.groups[name], self.footprints[name].nodes
        before = self.costs
        return PrunedLayer(
            name,
            group.producers[0].port.node.op_type if group.producers[0].port is not None else "",
            TECHNIQUE,
            f"{count} of {group.width} channels",
            float(self.orders[name].lost[group.width - count]),
            sum(before.numbers.get(node, 0) for node in nodes),
            sum(numbers.get(node, 0) for node in nodes),
            sum(before.macs.get(node, 0) for node in nodes),
            sum(macs.get(node, 0) for node in nodes),
            _time(nodes, before.milliseconds) if before.milliseconds else None,
            _time(nodes, times) if times else None,
        )

    def _refusals(self, counts: Counts) -> Iterator[PrunedLayer]:
        """The groups that keep all of their channels, and the channels that cannot go."""
        for name in self.groups:
            if name not in counts:
                reason = self.stays.get(name, "others lose less for what they gain")
                yield PrunedLayer(name, "", TECHNIQUE, reason=reason)
        for frozen in self.analysis.frozen:
            node = frozen.value.producer()
            op = node.op_type if node is not None else ""
            told = f"{frozen.width} channels: {frozen.reason}"
            yield PrunedLayer(frozen.value.name or "", op, TECHNIQUE, reason=told)


def _time(nodes: set[str], times: Mapping[str, float]) -> float:
    return sum(times.get(node, 0.0) for node in nodes)


def _numbers(model: Model) -> dict[str, int]:
    """Numbers of the constants that each node reads, by its first output."""
    found = {}
    for node in g.nodes(model.ir):
        tensors = (g.constant(value) for value in node.inputs)
        found[g.output_name(node)] = sum(tensor.size for tensor in tensors if tensor is not None)
    return found


def _norms(group: Group, method: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The norm of the weights that make each unit: Σ|w| with ``l1``, else Σw²."""
    total = np.zeros(group.width)
    for member in group.producers:
        weight = g.array(member.value)
        if weight is None:
            continue
        sizes = np.abs(weight) if method == "l1" else np.square(weight, dtype=np.float64)
        by_element = sizes.sum(axis=tuple(axis for axis in range(weight.ndim) if axis != member.axis))
        inside = member.units >= 0
        total += np.bincount(member.units[inside], by_element[inside], group.width)
    return total
