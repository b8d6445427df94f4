"""A recurrent layer as least squares takes it: z = [W R]·[xₜ, hₜ₋₁] + b, with a gate's rows each.

It is to give from what it still reads what all of [W R] gives, step by step, from its present inputs and the
states that it had before: so its target follows from the sums of what it reads, z being linear in that. A GRU
multiplies a gate with its state on the way, so that there W and R are fitted apart, and only the mean of W·x
moves to the bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.rewrite import RefusedError
from graphopt.runtime.accumulators import Doubles
from graphopt.runtime.pairs import Sums
from graphopt.runtime.steps import Steps
from graphopt_passes.refit.linear import Linear, linear_layers, put_constant
from graphopt_passes.refit.solve import Fit

RECURRENT = ("LSTM", "GRU", "RNN")
_W, _R, _B, _LENGTHS, _INITIAL = 1, 2, 3, 4, 5  # places among the inputs


@dataclass(frozen=True)
class Recurrent:
    """One such layer, known by the name of its states, as :class:`.Linear` is.

    Attributes:
        name: of all its states.
        node: in the model that it was read from.
        groups: directions.
        channels: rows of W, all directions together.
        inputs: numbers of xₜ.
        hidden: numbers of hₜ.
    """

    name: str
    node: ir.Node
    groups: int
    channels: int
    inputs: int
    hidden: int

    @classmethod
    def of(cls, node: ir.Node) -> Recurrent:
        """Read a node.

        Raises:
            RefusedError: its weights are no constants, or its states are not among its outputs.
        """
        weights = node.inputs[_W : _R + 1]
        found = [g.constant(value) for value in weights]
        if any(map(g.is_overridable, weights)):
            raise RefusedError("callers may override its weights (--freeze-initializers)")
        if any(one is None or one.dtype is not ir.DataType.FLOAT for one in found):
            raise RefusedError(f"{g.label(node)} has no constant weights")
        if not node.outputs[0].name or g.attribute(node, "layout", 0):
            raise RefusedError(f"{g.label(node)} does not give its states step by step")
        if any(value is not None for value in node.inputs[_LENGTHS : _LENGTHS + 1]):
            raise RefusedError(f"{g.label(node)} has sequences of different lengths")
        if any(value is not None and g.constant(value) is None for value in node.inputs[_B : _B + 1]):
            raise RefusedError(f"the bias of {g.label(node)} is no constant")
        w, r = (one.shape.numpy() for one in found if one is not None)
        return cls(node.outputs[0].name, node, w[0], w[0] * w[1], w[2], r[2])

    @property
    def op(self) -> str:
        """Its operator."""
        return self.node.op_type

    @property
    def source(self) -> str:
        """The name of what it reads."""
        return g.input_name(self.node, 0)

    @property
    def columns(self) -> int:
        """Of [W R]."""
        return self.inputs + self.hidden

    @property
    def weights(self) -> Mapping[int, int]:
        """Where W and R are among the inputs, and how many numbers each sums over."""
        return {_W: self.inputs, _R: self.hidden}

    @property
    def size(self) -> int:
        """Numbers of W and R."""
        return self.channels * self.columns

    @property
    def kernel(self) -> int:
        """Columns of a number, as a Conv has several."""
        return 1

    @property
    def can_shift(self) -> bool:
        """Whether means may move to the bias; ``targets`` has those that may."""
        return True

    def steps(self, held_every: int) -> Steps:
        """What to gather of its input and its states."""
        direction = g.attribute(self.node, "direction", "forward")
        text = direction.decode() if isinstance(direction, bytes) else direction
        backward = {"forward": (False,), "reverse": (True,)}.get(text, (False, True))
        from_zero = all(map(_is_zero, self.node.inputs[_INITIAL : _INITIAL + 1]))
        return Steps(self.inputs, self.hidden, backward, from_zero, held_every)

    def fit(self) -> Fit:
        """[W R] and b, [directions, gates·hidden, …]."""
        w, r = (self._constant(index) for index in (_W, _R))
        return Fit(np.concatenate([w, r], axis=2).astype(np.float64), self._biases().sum(axis=1))

    def rows(self) -> NDArray[np.float32]:
        """[W R] of all directions, float32 [channels, columns]."""
        found: NDArray[np.float32] = self.fit().rows.reshape(self.channels, -1).astype(np.float32)
        return found

    def targets(self, sums: Sums) -> Sums:
        """Sums over what is read, with those of what this layer makes of it."""
        weight, (xx, x) = self.fit(), self._apart(sums)
        w, b = weight.rows, weight.bias
        xy = np.einsum("gij,gcj->gic", xx, w) + np.einsum("gi,gc->gic", x, b)
        product = np.einsum("gcj,gj->gc", w, x)
        squares = np.einsum("gcj,gcj->gc", w @ xx, w)
        return Sums(
            xx,
            xy,
            x,
            product + sums.count * b,
            squares + b * (2 * product + sums.count * b),
            sums.count,
        )

    def _apart(self, sums: Sums) -> tuple[Doubles, Doubles]:
        """Σ xxᵀ and Σ x, a GRU's as if states had the mean 0 and nothing in common with inputs.

        A gate lies between R·h and the rest, so that neither inputs nor a bias can stand in for states.
        """
        xx, x, inputs = sums.xx.copy(), sums.x.copy(), self.inputs
        if self.op == "GRU":
            xx[:, :inputs, inputs:] = xx[:, inputs:, :inputs] = 0.0
            x[:, inputs:] = 0.0
        return xx, x

    def write(self, model: Model, run: Run, fit: Fit) -> None:
        """Put another W, R and b into the graph that the layer was read from, as float32."""
        rows = np.asarray(fit.rows, np.float32)
        self._put(model, run, _W, rows[:, :, : self.inputs])
        self._put(model, run, _R, rows[:, :, self.inputs :])
        biases = self._biases()
        shift = fit.bias - biases.sum(axis=1)
        if shift.any():
            biases[:, 0] += shift
            self._put(model, run, _B, biases.reshape(self.groups, -1))

    def _constant(self, index: int) -> NDArray[np.float32]:
        found = g.array(self.node.inputs[index])
        assert found is not None
        return np.asarray(found, np.float32)

    def _biases(self) -> NDArray[np.float64]:
        """A copy of those of W and of R, [directions, 2, gates·hidden]; 0 where there are none."""
        found = g.array(self.node.inputs[_B]) if len(self.node.inputs) > _B else None
        given = np.zeros((self.groups, 2 * self.channels // self.groups)) if found is None else found
        return given.reshape(self.groups, 2, -1).astype(np.float64)

    def _put(self, model: Model, run: Run, index: int, data: NDArray[np.floating]) -> None:
        self.node.resize_inputs(max(len(self.node.inputs), index + 1))
        put_constant(model, run, self.node, index, np.ascontiguousarray(data, np.float32))


Layer = Linear | Recurrent
"""What least squares can fit."""

AnyLayer = TypeVar("AnyLayer", bound=Layer)


def fittable(model: Model) -> dict[str, Layer]:
    """All layers of the main graph that can be fitted, by name, in its order."""
    linear = {one.node: one for one in linear_layers(model) if isinstance(one, Linear)}
    found = (linear.get(node) or _recurrent(node) for node in model.ir.graph)
    return {one.name: one for one in found if one is not None}


def recurrent_layers(model: Model) -> Iterator[Recurrent]:
    """Those of the main graph that can be fitted."""
    yield from (one for one in map(_recurrent, model.ir.graph) if one is not None)


def _is_zero(value: ir.Value | None) -> bool:
    """Whether an initial state is zeros, or left out, which means the same."""
    node = value.producer() if value is not None else None
    if node is not None and g.is_op(node, "Expand"):
        return _is_zero(node.inputs[0])
    if node is not None and g.is_op(node, "ConstantOfShape"):
        fill = g.attribute(node, "value")
        return fill is None or not fill.numpy().any()
    found = g.array(value)
    return value is None or (found is not None and not found.any())


def _recurrent(node: ir.Node) -> Recurrent | None:
    if not g.is_op(node, *RECURRENT):
        return None
    try:
        return Recurrent.of(node)
    except RefusedError:
        return None
