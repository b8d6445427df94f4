"""``--channels``: whole channels removed, those that the rest can make up for, from where it gains most.

1. The groups of channels that can only go together, and what is frozen and why (``axes``).
2. In each group an order of its units, and what is lost with each (``selection``); with half of the units
   gone, the noise that this makes at the outputs of the model (``orders``).
3. Widths that kernels like, chosen for all groups together: the least noise for what is gained. Where more
   than half of a group is to go, the noise of that is measured, too, and widths are chosen again.
4. A group whose nodes take no less time when it is narrower stays as it is.
5. All layers behind the first cut are fitted again, in the order of the graph, from what they read now to
   what they gave before (``cutting``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from graphopt import graph as g
from graphopt.model import Model
from graphopt.precision import Outcome, Task
from graphopt.report import PrunedLayer
from graphopt_passes.axes import Group, shrink
from graphopt_passes.prune.allocation import Choice, allocate
from graphopt_passes.prune.costs import Costs, Times
from graphopt_passes.prune.cutting import cut
from graphopt_passes.prune.footprints import Footprint, left
from graphopt_passes.prune.kernel_blocks import block
from graphopt_passes.prune.network import Network
from graphopt_passes.prune.orders import Orders
from graphopt_passes.prune.search import Attempt, searched
from graphopt_passes.prune.widths import widths
from graphopt_passes.quantize.draft import macs_by_node

TECHNIQUE = "channels"
_ROUNDS = 4  # of choosing widths, and measuring what was not measured yet
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
    def network(self) -> Network:
        return Network(self.task)

    @property
    def groups(self) -> Mapping[str, Group]:
        return self.network.groups

    @cached_property
    def known(self) -> Orders:
        return Orders.of(self.network)

    @cached_property
    def costs(self) -> Costs:
        return Costs(self.task)

    @cached_property
    def block(self) -> int | None:
        """What Conv kernels compute at a time, if time counts."""
        counts = self.task.measured and self.task.options.objective == "latency"
        return block(self.task) if counts else None

    @cached_property
    def footprints(self) -> dict[str, Footprint]:
        return {name: Footprint.of(group) for name, group in self.groups.items()}

    # How many of which group.

    @property
    def choices(self) -> dict[str, list[Choice[int]]]:
        """What each group that may still be narrower can become, as a number of units."""
        return {
            name: [self._choice(name, count) for count in widths(group, self.block)]
            for name, group in self.groups.items()
            if name not in self.stays and name not in self.known.refused
        }

    def _choice(self, name: str, count: int) -> Choice[int]:
        noise = self.known.noise(name, self.groups[name].width - count)
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
        """Widths with which so large a share goes, or the most that can; what they do was measured."""
        for _ in range(_ROUNDS):
            counts = self._allocated(share)
            if self.known.reach({name: self.groups[name].width - one for name, one in counts.items()}):
                break
        return counts

    def _allocated(self, share: float) -> Counts:
        choices = self.choices
        if not choices:
            return {}
        most = sum(max(one.saved for one in mine) for mine in choices.values() if mine)
        low, high, best = 0.0, most, allocate(choices, most)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            counts = allocate(choices, middle)
            if self._removed(counts) >= share:
                best, high = counts, middle
            else:
                low = middle
        return self._relaxed(best, share)

    def _relaxed(self, counts: Counts, share: float) -> Counts:
        """The same with groups made wider again, as long as the share is removed: always the noisiest step.

        Widths are coarse, so that the greedy path may end well beyond what was asked for.
        """
        while True:
            wider = [found for name in counts if self._removed(found := self._wider(counts, name)) >= share]
            if not wider:
                return counts
            counts = min(wider, key=self._noise)

    def _wider(self, counts: Counts, name: str) -> Counts:
        """With the next width of a group, or all of it."""
        more = [one for one in widths(self.groups[name], self.block) if one > counts[name]]
        rest = {other: count for other, count in counts.items() if other != name}
        return {**rest, name: more[0]} if more else rest

    def _noise(self, counts: Counts) -> float:
        return sum(self.known.noise(name, self.groups[name].width - one) for name, one in counts.items())

    def make(self, share: float) -> Attempt:
        """Remove so large a share of the channels, or the most that can be; less if some gain nothing."""
        counts, times = dict(self._counts(share)), None
        while counts:
            kept = {self.groups[name]: self.known.orders[name].kept(count) for name, count in counts.items()}
            times = Times.of(self.task, shrink(self.network.model, kept)) if self.task.measured else None
            idle = [name for name in counts if times and self._gains_nothing(name, times)]
            if not idle:
                return self._attempt(cut(self.network, kept), counts, times)
            counts = {name: count for name, count in counts.items() if name not in idle}
        told = "no group of channels is worth it" if self.groups else "no channel can be removed"
        return Attempt(None, 0.0, tuple(self._refusals({})), told)

    def _gains_nothing(self, name: str, times: Times) -> bool:
        """Whether the nodes of a group take as long as before, although it is narrower; it stays then."""
        nodes, before = self.footprints[name].nodes, self.costs.times
        if before is None or self.task.options.objective != "latency":
            return False
        if times.share(nodes, before) < before.share(nodes, before):
            return False
        told = f"its nodes would take {times.milliseconds(nodes):.3g} ms"
        self.stays[name] = f"{told}, and take {before.milliseconds(nodes):.3g} ms"
        return True

    # The ledger.

    def _attempt(self, model: Model, counts: Counts, times: Times | None) -> Attempt:
        share = self._removed(counts)
        numbers, macs = _numbers(model), macs_by_node(model, self.task)
        rows = [self._row(name, count, numbers, macs, times) for name, count in counts.items()]
        gone = sum(self.groups[name].width - count for name, count in counts.items())
        whole = sum(group.width for group in self.groups.values())
        told = f"{gone:,} of {whole:,} channels that can be, {self._saved(counts, times)}"
        return Attempt(model, share, (*rows, *self._refusals(counts)), told, self.network.notes)

    def _saved(self, counts: Counts, times: Times | None) -> str:
        """What that saves of the objective: of time what was profiled, else what is computed."""
        if self.costs.unit == "time" and times is not None and self.costs.times is not None:
            return f"{1 - times.whole_share(self.costs.times):.0%} of the time of all nodes"
        return f"about {1 - self._left(counts):.0%} of the {self.costs.unit}"

    def _row(
        self,
        name: str,
        count: int,
        numbers: Mapping[str, int],
        macs: Mapping[str, int],
        times: Times | None,
    ) -> PrunedLayer:
        group, nodes = self.groups[name], list(self.footprints[name].made)  # each is of one group
        before = self.costs
        return PrunedLayer(
            name,
            group.producers[0].port.node.op_type if group.producers[0].port is not None else "",
            TECHNIQUE,
            f"{count} of {group.width} {_units(group)}",
            float(self.known.orders[name].lost[group.width - count]),
            sum(before.numbers.get(node, 0) for node in nodes),
            sum(numbers.get(node, 0) for node in nodes),
            sum(before.macs.get(node, 0) for node in nodes),
            sum(macs.get(node, 0) for node in nodes),
            before.times.milliseconds(nodes) if before.times else None,
            times.milliseconds(nodes) if times else None,
        )

    def _refusals(self, counts: Counts) -> Iterator[PrunedLayer]:
        """The groups that keep all of their channels, and the channels that cannot go."""
        for name in self.groups:
            if name not in counts:
                told = self.stays.get(name) or self.known.refused.get(name)
                reason = told or "others lose less for what they gain"
                yield PrunedLayer(name, "", TECHNIQUE, reason=reason)
        for name, reason in self.network.refused.items():
            yield PrunedLayer(name, "", TECHNIQUE, reason=reason)
        for frozen in self.network.analysis.frozen:
            node = frozen.value.producer()
            op = node.op_type if node is not None else ""
            told = f"{frozen.width} channels: {frozen.reason}"
            yield PrunedLayer(frozen.value.name or "", op, TECHNIQUE, reason=told)


def _units(group: Group) -> str:
    """What a group's units are."""
    size = int((group.producers[0].units >= 0).sum()) // group.width
    return "channels" if size == 1 else f"units of {size} channels"


def _numbers(model: Model) -> dict[str, int]:
    """Numbers of the constants that each node reads, by its first output."""
    found = {}
    for node in g.nodes(model.ir):
        tensors = (g.constant(value) for value in node.inputs)
        found[g.output_name(node)] = sum(tensor.size for tensor in tensors if tensor is not None)
    return found
