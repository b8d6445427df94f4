"""In which order the units of each group of a model go, and what half of them gone does to its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.runtime.accumulators import Doubles
from graphopt.runtime.pairs import RowPairs, Shares
from graphopt.storage.weights import slices
from graphopt_passes.axes import Group, masked
from graphopt_passes.prune.network import Network
from graphopt_passes.prune.readers import Reader, readers
from graphopt_passes.prune.selection import Order, ordered
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.sensitivity import sensitivities
from graphopt_passes.refit.kept import fit_kept
from graphopt_passes.refit.moments import MOST_ROWS
from graphopt_passes.refit.recurrent import Layer, Recurrent, fittable
from graphopt_passes.refit.teacher import MOST_COLUMNS, is_seen

_AT_ONCE = 1 << 22  # numbers of a weight


@dataclass(frozen=True)
class Orders:
    """What is known of groups, by name.

    Attributes:
        orders: of their units.
        noises: at the outputs of the model, with half of a group's units gone.
        refused: groups with half of which the model does not run, and why.
    """

    orders: Mapping[str, Order]
    noises: Mapping[str, float]
    refused: Mapping[str, str]

    @classmethod
    def of(cls, network: Network) -> Orders:
        """Gather moments, a few groups at a time, and choose."""
        found: dict[str, Order] = {}
        halves: dict[str, Model] = {}
        for names in _batches(network):
            layers = {one.name: one for name in names for one in network.read_by(network.groups[name])}
            seen = network.pairs(network.model, layers.values())
            pairs = {layer.name: found for layer, found in seen}
            for name in names:
                network.task.progress("choosing channels", len(found), len(network.groups))
                group = network.groups[name]
                found[name] = _order(network, group, pairs)
                halves[name] = _half(network, group, found[name], pairs)
            del pairs  # before the next are gathered
        task, refused = network.task, dict[str, str]()

        def build(name: str) -> Draft:
            return Draft(task, halves[name], frozenset())

        noises = sensitivities(task, build, list(halves), refused.__setitem__, network.held)
        return cls(found, noises, refused)

    def noise(self, name: str, gone: int) -> float:
        """The noise with so many units gone: in the proportion of what the readers lose."""
        order = self.orders[name]
        half = float(order.lost[len(order.units) // 2])
        return self.noises[name] * float(order.lost[gone]) / half if half else 0.0


def _batches(network: Network) -> Iterator[list[str]]:
    """Groups whose readers' moments fit into memory together."""
    batch, size = list[str](), 0
    for name, group in network.groups.items():
        need = sum(_need(one) for one in network.read_by(group) if is_seen(one))
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


def _half(network: Network, group: Group, order: Order, pairs: Mapping[str, Shares | RowPairs]) -> Model:
    """The model with half of a group's units without effect, its readers fitted to that."""
    kept = {group: order.kept(group.width - group.width // 2)}
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
