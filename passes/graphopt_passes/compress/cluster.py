"""``--cluster``: the weights of a layer share 16 or 256 values, for storage.

    w  →  Gather(values, Cast(indices, to int32))

ONNX Runtime folds both when it makes a session, so that a run is what it was; the file holds one index of 4
or 8 bits for each number. Values are those of least error at the outputs of the layer (``codebook``). With a
budget the weights that make the most noise for the bytes they save stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.activations import Request
from graphopt.model import Model
from graphopt.precision import Outcome, Task
from graphopt.report import PrunedLayer
from graphopt.runtime.accumulators import Array
from graphopt.runtime.means import Averages, Mean
from graphopt.storage.weights import slices
from graphopt_passes.compress.codebook import Codebook, Histogram
from graphopt_passes.prune.allocation import Choice, allocate
from graphopt_passes.prune.search import Attempt, searched
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.sensitivity import sensitivities
from graphopt_passes.quantize.shares import Shares
from graphopt_passes.refit.linear import LINEAR
from graphopt_passes.weights.build import Builder
from graphopt_passes.weights.constants import Front, replace
from graphopt_passes.weights.forms import IR_WITH_NIBBLES, pack
from graphopt_passes.weights.places import Place, places

_TECHNIQUE = "cluster"
_AT_ONCE = 1 << 20  # numbers


def prune(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    assert task.options.cluster is not None
    return searched(task, _Stage(task, task.options.cluster).make, 1.0, saves_time=False)


@dataclass
class _Stage:
    """One run."""

    task: Task
    bits: int
    refused: dict[str, PrunedLayer] = field(default_factory=dict)

    @cached_property
    def builder(self) -> Builder:
        """The model, of an opset that knows indices of 4 bits if they are wanted."""
        return Builder.of(self.task, self.bits)

    @cached_property
    def places(self) -> dict[str, Place]:
        """The weights that can be indices, by name; refusals are noted."""
        run = self.task.new_run()
        found = {place.name: place for place in places(self.builder.base, run)}
        for refusal in run.journal.refusals:
            name = refusal.where.strip("'")
            self.refused[name] = PrunedLayer(name, "", _TECHNIQUE, reason=refusal.reason)
        return found

    @cached_property
    def codebooks(self) -> dict[str, Codebook]:
        """The values of each weight."""
        energies = self._energies()
        found = {}
        for done, (name, place) in enumerate(self.places.items()):
            self.task.progress("choosing values for weights", done, len(self.places))
            histogram = _counted(place, energies.get(name, np.ones(1)))
            if histogram is None:
                self.refused[name] = self._row(place, "", None, "it holds NaN or infinity")
            else:
                found[name] = Codebook.of(histogram, 1 << self.bits)
        return found

    def _energies(self) -> dict[str, Array]:
        """E(x²) of what the numbers of a weight are multiplied with, in a shape that broadcasts to it."""
        task = self.task
        if task.options.data is None:
            return {}
        requests = {name: _request(place) for name, place in self.places.items()}
        wanted = [request for request in requests.values() if request is not None]
        known = task.collector.collect(self.builder.base, wanted, Shares.of(task).fitting).found
        return {
            name: _spread(self.places[name], moments.second_moment)
            for name, request in requests.items()
            if request is not None and isinstance(moments := known.get(request), Averages)
        }

    @cached_property
    def noises(self) -> dict[str, float]:
        """The noise at the outputs when one weight alone is indices."""

        def build(name: str) -> Draft:
            return Draft(self.task, self._build([name]), frozenset())

        return sensitivities(self.task, build, list(self.codebooks), self._refuse)

    def _refuse(self, name: str, reason: str) -> None:
        self.refused[name] = self._row(self.places[name], "", None, reason)
        del self.codebooks[name]

    def make(self, share: float) -> Attempt:
        """Let weights share values until so large a share of the bytes that can be saved is."""
        if self.builder.nibbles:
            return Attempt(None, 0.0, (), f"indices of 4 bits need opset 21, and {self.builder.nibbles}")
        if not self.codebooks:
            told = "there is no weight of 2,048 numbers and more that products are summed up with"
            return Attempt(None, 0.0, tuple(self.refused.values()), told)
        chosen = list(self.codebooks) if share >= 1 else list(self._cheapest(share))
        numbers = {name: self.places[name].weight.tensor.size for name in self.codebooks}
        done = sum(numbers[name] for name in chosen) / sum(numbers.values())
        rows = [self._told(name, name in chosen) for name in self.codebooks]
        told = f"the values of {done:.0%} of the weights, each now an index of {self.bits} bits into a table"
        return Attempt(self._build(chosen), done, (*rows, *self.refused.values()), told)

    def _cheapest(self, share: float) -> dict[str, bool]:
        """The weights that make the least noise for the bytes they save."""
        noises = self.noises  # refuses what does not run
        total = sum(self.places[name].weight.tensor.size for name in self.codebooks)
        choices = {
            name: [Choice(True, self.places[name].weight.tensor.size / total, noise)]
            for name, noise in noises.items()
            if name in self.codebooks
        }
        return allocate(choices, share)

    def _build(self, names: Collection[str]) -> Model:
        model, run = self.builder.base.clone(), self.task.new_run()
        for place in list(places(model, run)):
            if place.name in names:
                values = self.codebooks[place.name]
                front = Front.of(place.weight, model, run)
                stored = front.constant(_indices(place, values, self.bits), f"{place.name}_indices")
                table = front.constant(values.values, f"{place.name}_values")
                numbers = front.node("Cast", stored, to=int(ir.DataType.INT32))
                replace(place.weight, front.node("Gather", table, numbers), model, run)
                if self.bits == 4:
                    model.ir.ir_version = max(model.ir.ir_version, IR_WITH_NIBBLES)
        return model

    def _told(self, name: str, is_done: bool) -> PrunedLayer:
        place, count = self.places[name], len(self.codebooks[name].values)
        if not is_done:
            return self._row(place, "", None, "sharing values would cost too much accuracy")
        return self._row(
            place, f"{count} values of {self.bits} bits", _error(place, self.codebooks[name]), ""
        )

    @staticmethod
    def _row(place: Place, kept: str, error: float | None, reason: str) -> PrunedLayer:
        size = place.weight.tensor.size
        return PrunedLayer(place.name, place.op, _TECHNIQUE, kept, error, size, size, reason=reason)


def _request(place: Place) -> Request | None:
    """The energies of the channels that a weight reads; None if it is no layer's second input."""
    reader = place.readers[0]
    node, value = reader.node, reader.node.inputs[0]
    if reader.index != 1 or node.op_type not in LINEAR or value is None:
        return None
    turned = node.op_type == "Gemm" and g.attribute(node, "transA", 0)
    axis = 1 if node.op_type == "Conv" else 0 if turned else -1
    return Request(value.name or "", Mean(axis))


def _spread(place: Place, energies: Array) -> Array:
    """Energies of channels in a shape that broadcasts to the weight, whose groups share them."""
    dims = place.weight.tensor.shape.numpy()
    if place.op == "Conv":
        by_group = energies.reshape(-1, dims[1]).mean(axis=0)
        spread: Array = by_group.reshape(1, -1, *(1,) * (len(dims) - 2))
        return spread
    return energies[:, None] if place.turned else energies[None, :]


def _parts(place: Place, energies: Array) -> Iterator[tuple[Array, Array]]:
    """The numbers of a weight, a part at a time, and their energies; no energy is quite 0."""
    floor = max(float(energies.max()), 1e-30) * 1e-6
    for part, numbers in slices(place.weight.tensor, _AT_ONCE):
        yield numbers, np.maximum(energies[part] if energies.shape[0] > 1 else energies, floor)


def _counted(place: Place, energies: Array) -> Histogram | None:
    """The histogram of a weight; None if it holds NaN or infinity."""
    low, high = np.inf, -np.inf
    for numbers, _ in _parts(place, energies):
        low, high = min(low, float(numbers.min())), max(high, float(numbers.max()))
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    return Histogram.of(_parts(place, energies), low, high)


def _indices(place: Place, values: Codebook, bits: int) -> ir.TensorProtocol:
    """The index of each number, uint4 or uint8 in the weight's shape."""
    tensor = place.weight.tensor
    found = np.empty(tensor.shape.numpy(), np.uint8)
    for part, numbers in slices(tensor, _AT_ONCE):
        found[part] = values.indices(numbers)
    if bits == 8:
        return ir.Tensor(found)
    return ir.PackedTensor(pack(found.reshape(-1), 4), ir.DataType.UINT4, shape=ir.Shape(found.shape))


def _error(place: Place, values: Codebook) -> float:
    """Σ(ŵ − w)² / Σw²."""
    lost = whole = 0.0
    for _, numbers in slices(place.weight.tensor, _AT_ONCE):
        exact = numbers.astype(np.float64)
        lost += float(np.square(values.values[values.indices(numbers)] - exact).sum())
        whole += float(np.square(exact).sum())
    return lost / whole if whole else 0.0
