"""In which order the units of each group of a model go, and what it does to outputs that some are gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.runtime.accumulators import Doubles
from graphopt.runtime.pairs import RowPairs, Shares
from graphopt.storage.weights import slices
from graphopt_passes.axes import Group, masked
from graphopt_passes.prune.network import Network
from graphopt_passes.prune.readers import Columns, Reader, readers
from graphopt_passes.prune.selection import Order, ordered
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.sensitivity import sensitivities
from graphopt_passes.refit.kept import fit_kept
from graphopt_passes.refit.moments import MOST_ROWS
from graphopt_passes.refit.recurrent import Layer, Recurrent, fittable
from graphopt_passes.refit.teacher import MOST_COLUMNS, is_seen

_AT_ONCE = 1 << 22  # numbers of a weight


@dataclass
class Orders:
    """What is known of groups, by name.

    Attributes:
        network: they are of.
        orders: of their units.
        noises: at the outputs of the model, by how many units of a group alone are gone: half of them first.
        refused: groups without which the model does not run, and why.
    """

    network: Network
    orders: dict[str, Order] = field(default_factory=dict)
    noises: dict[str, dict[int, float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, network: Network) -> Orders:
        """Choose the order of each group, and measure half of it."""
        found = cls(network)
        found._measure({name: group.width // 2 for name, group in network.groups.items()})
        return found

    def noise(self, name: str, gone: int) -> float:
        """The noise with so many units gone.

        Between what was measured, and beyond, it is in the proportion of what the readers lose.
        """
        lost, known = self.orders[name].lost, {0: 0.0} | dict(sorted(self.noises[name].items()))
        most = max(known)
        if gone > most and lost[most]:
            return known[most] * float(lost[gone] / lost[most])
        return float(np.interp(lost[gone], lost[list(known)], list(known.values())))

    def reach(self, gone: Mapping[str, int]) -> bool:
        """Whether so many units of each group were measured. Where fewer were, these are now.

        The last ones may break much more than what the readers lose tells.
        """
        beyond = {name: count for name, count in gone.items() if count > max(self.noises[name])}
        if beyond:
            self._measure(beyond)
        return not beyond

    def _measure(self, gone: Mapping[str, int]) -> None:
        """Gather moments, a few groups at a time, and run the model without units of each group alone."""
        models = dict(self._without(gone))

        def build(name: str) -> Draft:
            return Draft(self.network.task, models[name], frozenset())

        task, held = self.network.task, self.network.held
        for name, noise in sensitivities(task, build, list(models), self.refused.__setitem__, held).items():
            known = self.noises.setdefault(name, {})
            known[gone[name]] = max(noise, *known.values(), 0.0)  # more units do not make less noise

    def _without(self, gone: Mapping[str, int]) -> Iterator[tuple[str, Model]]:
        network = self.network
        for names in _batches(network, gone):
            layers = {one.name: one for name in names for one in network.read_by(network.groups[name])}
            seen = network.pairs(network.model, layers.values())
            pairs = {layer.name: found for layer, found in seen}
            for name in names:
                network.task.progress("choosing channels", len(self.noises), len(network.groups))
                group = network.groups[name]
                if name not in self.orders:
                    self.orders[name] = _order(network, group, pairs)
                yield name, _without(network, group, self.orders[name].kept(group.width - gone[name]), pairs)
            del pairs  # before the next are gathered


def _batches(network: Network, names: Iterable[str]) -> Iterator[list[str]]:
    """Groups whose readers' moments fit into memory together."""
    batch, size = list[str](), 0
    for name in names:
        need = sum(_need(one) for one in network.read_by(network.groups[name]) if is_seen(one))
        if batch and size + need > network.task.options.calibration_memory:
            yield batch
            batch, size = [], 0
        batch, size = [*batch, name], size + need
    if batch:
        yield batch


def _need(layer: Layer) -> int:
    """Bytes, about, of what was gathered for a layer and of what is made of it."""
    if layer.columns > MOST_COLUMNS:
        return 3 * 4 * MOST_ROWS * (layer.columns + layer.channels)
    return 3 * 8 * layer.groups * layer.columns**2


def _order(network: Network, group: Group, pairs: Mapping[str, Shares | RowPairs]) -> Order:
    found: list[Reader] = []
    for layer in network.read_by(group):
        known = pairs.get(layer.name)
        if known is not None or not _had_no_state(network, group, layer):
            found += readers(group, layer, known)
    select = network.task.options.select
    return ordered(found, _norms(group, select), select)


def _had_no_state(network: Network, group: Group, layer: Layer) -> bool:
    """Whether samples were run, and no step of theirs gave a state that a recurrence reads.

    Sequences of one step whose initial state is given are such: of these units the layer is no reader.
    """
    makes = any(member.port is not None and member.port.node is layer.node for member in group.producers)
    watched = bool(network.samples) and is_seen(layer)
    return isinstance(layer, Recurrent) and makes and watched


def _without(network: Network, group: Group, units: Columns, pairs: Mapping[str, Shares | RowPairs]) -> Model:
    """The model with only some units of a group in effect, its readers fitted to that."""
    kept = {group: units}
    model, run = masked(network.model, kept), network.task.new_run()
    if not network.refits:
        return model
    for name, layer in fittable(model).items():
        columns = network.columns(network.fitted[name], kept) if name in pairs else None
        if columns is not None:
            layer.write(model, run, fit_kept(layer, pairs[name], columns, final=False))
    return model


def _norms(group: Group, method: str) -> Doubles:
    """The norm of the weights that make each unit: Σ|w| with ``l1``, else Σw²."""
    total = np.zeros(group.width)
    for member in group.producers:
        weight = g.constant(member.value)
        if weight is not None:
            inside = member.units >= 0
            sizes = _sizes(weight, member.axis, method)
            total += np.bincount(member.units[inside], sizes[inside], group.width)
    return total


def _sizes(weight: ir.TensorProtocol, axis: int, method: str) -> Doubles:
    """Σ|w| with ``l1``, else Σw², at each index of an axis; only a part of the weight is in memory."""
    shape = weight.shape.numpy()
    found, others = np.zeros(shape[axis]), tuple(one for one in range(len(shape)) if one != axis)
    for rows, part in slices(weight, _AT_ONCE):
        sizes = np.abs(part) if method == "l1" else np.square(part, dtype=np.float64)
        found[slice(None) if axis else rows] += sizes.sum(axis=others, dtype=np.float64)
    return found
