"""``--circulant``: products with block-circulant matrices, fitted by least squares.

    y = W·x + b   →   Reshape, MatMul (E), Transpose, MatMul (all components), Transpose, MatMul (G), Reshape

The DFT operator is not used, whose kernel is far slower than a product with a constant matrix. What the file
holds are the numbers c, a share of 1/b of the weight; what multiplies the components is made of them when the
model is loaded. Errors are large, since few trained matrices are nearly circulant: the ledger tells them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.activations import Request
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.precision import Outcome, Task
from graphopt.runtime.accumulators import Doubles
from graphopt.runtime.moments import Gram
from graphopt_passes.compress.block_circulant import Transform, expand, project
from graphopt_passes.compress.stage import reformed
from graphopt_passes.quantize.consumers import moments_of
from graphopt_passes.refit.linear import Linear

RULE = "make-circulant"
LEAST = 1 << 12  # numbers of a weight: smaller ones take no time that seven nodes would not
MOST_COLUMNS = 4096  # their moments take 128 MB


def prune(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    assert task.options.circulant is not None
    return reformed(task, _Circulant(task.options.circulant), 1.0)


@dataclass(frozen=True)
class _Circulant:
    """See :class:`graphopt_passes.compress.stage.Form`."""

    size: int
    technique: str = "circulant"

    def refusal(self, layer: Linear, model: Model, run: Run) -> str:
        dims = f"{layer.channels} x {layer.columns} numbers"
        turned = layer.op == "Gemm" and g.attribute(layer.node, "transA", 0)
        rank = run.shapes(model).rank(layer.node.inputs[0])
        why_not = {
            "it is a Conv; only products are made circulant": layer.op == "Conv",
            f"its {layer.size:,} numbers are too few for it": layer.size < LEAST,
            f"{dims} are not blocks of {self.size}": layer.channels % self.size or layer.columns % self.size,
            f"the moments of {layer.columns:,} inputs would take too much memory": layer.columns
            > MOST_COLUMNS,
            "its input is transposed": turned,
            "what it adds is not one constant for each channel": layer.op == "Gemm" and not layer.can_shift,
            "the rank of its input is not known": rank is None,
            "its input is a vector": rank == 1,
        }
        return next((reason for reason, holds in why_not.items() if holds), "")

    def request(self, layer: Linear, arrays: int) -> Request:
        kind = moments_of(layer.node, arrays)
        assert kind is not None
        return Request(layer.source, kind)

    def fitted(self, layer: Linear, moments: Gram | None) -> _Fitted:
        weight = layer.rows().astype(np.float64)
        second = None if moments is None else moments.products[0] / moments.count
        numbers = project(weight, self.size, second)
        lost = expand(numbers, self.size) - weight
        shift = lost @ moments.mean[0] if moments is not None and layer.can_shift else np.zeros(len(weight))
        return _Fitted(numbers, -shift, _error(lost, weight, second, shift))


def _error(lost: Doubles, weight: Doubles, moments: Doubles | None, shift: Doubles) -> float:
    """‖y' − y‖² / ‖y‖², the mean of what is lost taken back by the bias."""
    if moments is None:
        return float(np.square(lost).sum() / max(np.square(weight).sum(), 1e-30))
    noise, signal = (float(np.einsum("ij,jk,ik->", m, moments, m, optimize=True)) for m in (lost, weight))
    return float(max(noise - np.square(shift).sum(), 0.0) / max(signal, 1e-30))


@dataclass(frozen=True)
class _Fitted:
    """See :class:`graphopt_passes.compress.stage.Fitted`; the only size is that of the blocks.

    Attributes:
        blocks: c, float64 [channels / b, columns / b, b].
        shift: what the bias adds, float64 [channels].
        lost: the error.
    """

    blocks: Doubles
    shift: Doubles
    lost: float

    @property
    def sizes(self) -> Sequence[int]:
        return [self.blocks.shape[2]]

    def error(self, size: int) -> float:
        return self.lost

    def kept(self, size: int) -> float:
        """Products of all components, and of both transforms."""
        outer, inner, _ = self.blocks.shape
        components = 2 * size - 2
        macs = components * (outer * inner + size * (outer + inner))
        return float(macs / (outer * inner * size * size))

    def numbers(self, size: int) -> int:
        return self.blocks.size

    def told(self, size: int) -> str:
        return f"blocks of {size}"

    def write(self, layer: Linear, size: int, model: Model, run: Run) -> Sequence[str]:
        if self.shift.any():
            layer.shift(model, run, self.shift)
        rank = run.shapes(model).rank(layer.node.inputs[0])
        assert rank is not None
        return _Writer(layer, model, run, rank).write(self.blocks)


@dataclass(frozen=True)
class _Writer:
    """Writes one layer in place."""

    layer: Linear
    model: Model
    run: Run
    rank: int

    def write(self, blocks: Doubles) -> Sequence[str]:
        """Its nodes; returns the names of what they make."""
        outer, inner, size = blocks.shape
        transform, node = Transform.of(size), self.layer.node
        self.run.journal.admit(RULE, self.layer.name)
        x = node.inputs[0]
        assert x is not None
        rows = self.rank - 1
        split = self._node("Reshape", x, self._shape([0] * rows + [inner, size]))
        seen = self._node("MatMul", split, self._floats(transform.forward, "forward"))
        first = self._node("Transpose", seen, perm=[rows + 1, *range(rows), rows])
        products = self._node("MatMul", first, self._weights(blocks, transform))
        last = self._node("Transpose", products, perm=[*range(1, rows + 1), rows + 1, 0])
        back = self._node("MatMul", last, self._floats(transform.backward, "backward"))
        made = [split, seen, first, products, last, back]
        return [value.name or "" for value in made] + self._end(back, outer * size)

    def _weights(self, blocks: Doubles, transform: Transform) -> ir.Value:
        """[components, 1, …, columns / b, channels / b], computed when the model is loaded."""
        outer, inner, size = blocks.shape
        stored = self._floats(blocks.transpose(2, 1, 0).reshape(size, -1), "blocks")
        spread = self._node("MatMul", self._floats(transform.weights, "frequencies"), stored)
        dims = [len(transform.weights), *[1] * (self.rank - 2), inner, outer]
        return self._node("Reshape", spread, self._shape(dims))

    def _end(self, back: ir.Value, channels: int) -> list[str]:
        """The layer's output: its channels in a row, and a Gemm's bias."""
        node = self.layer.node
        shape = self._shape([0] * (self.rank - 1) + [channels])
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        made = self._node("Reshape", back, shape)
        names = []
        if bias is not None:
            names, made = [made.name or ""], self._node("Add", made, bias)
        weight = node.inputs[1]
        g.inherit(node.outputs[0], made)
        g.remove(node)
        if weight is not None and not weight.uses():
            self.run.drop_constant(weight)
        return names

    def _floats(self, data: Doubles, what: str) -> ir.Value:
        name = f"{self.layer.name}_{what}"
        return self.run.new_constant(
            self.model, self.layer.node, np.ascontiguousarray(data, np.float32), name
        )

    def _shape(self, dims: list[int]) -> ir.Value:
        name = f"{self.layer.name}_shape"
        return self.run.new_constant(self.model, self.layer.node, np.array(dims, np.int64), name)

    def _node(self, op_type: str, *inputs: ir.Value, perm: Sequence[int] = ()) -> ir.Value:
        attributes = [ir.AttrInt64s("perm", list(perm))] if perm else []
        made = ir.Node("", op_type, list(inputs), attributes)
        made.outputs[0].name = self.run.names(self.model).fresh(f"{self.layer.name}_{op_type.lower()}")
        node = self.layer.node
        assert node.graph is not None
        node.graph.insert_before(node, [made])
        return made.outputs[0]
