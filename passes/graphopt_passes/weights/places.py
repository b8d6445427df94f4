"""Where weights can be blocks of small integers: who reads them, and along which axis they are summed up.

A weight is seen as rows [channels, columns], whose columns are summed up. It can be computed with as it is
stored, without ever being float again, if all that read it are products with it on the right, or lookups of
its rows. Any other weight can still be stored so, and is made float once when the model is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.choices import BLOCK_SIZES
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt_passes.quantize.scheme import Array
from graphopt_passes.weights.constants import Weight, others, weights

if TYPE_CHECKING:
    from graphopt.shapes.inference import Shapes

RULE = "quantize-weights"
LEAST = 1 << 11  # numbers of a weight; smaller ones save little, and their scales and nodes take it back
LEAST_BLOCK = 4  # numbers that share a scale, which takes as much room as eight of them
_RECURRENT = ("LSTM", "GRU", "RNN")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
# What stands between a last product and what a model gives; what is added or multiplied with is constant.
_ADJUSTING = ("Add", "Mul", "Div")
_SCORING = ("Softmax", "LogSoftmax", "Sigmoid", "ArgMax")
_MOVING = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose")


@dataclass(frozen=True)
class Reader:
    """One node that reads a weight.

    Attributes:
        node: the product or lookup; behind a Transpose of the weight, what reads that.
        index: of its input that is the weight.
        turned: whether its columns are the weight's first axis, as they are right of a MatMul.
        way: ``product``, ``lookup``, or ``stored`` for what has no kernel for blocks of integers.
    """

    node: ir.Node
    index: int
    turned: bool
    way: str


@dataclass(frozen=True)
class Place:
    """A weight that can be blocks of integers.

    Attributes:
        weight: the constant.
        readers: all that read it.
        turned: whether rows are the weight's transpose.
    """

    weight: Weight
    readers: tuple[Reader, ...]

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name

    @property
    def turned(self) -> bool:
        """Whether rows are the weight's transpose."""
        return self.readers[0].turned

    @property
    def op(self) -> str:
        """The operator of the first node that reads it."""
        return self.readers[0].node.op_type

    @property
    def has_kernel(self) -> bool:
        """Whether all that read it can do so without making it float, along the same axis."""
        return all(one.way != "stored" and one.turned == self.turned for one in self.readers)

    @property
    def is_last(self) -> bool:
        """Whether a product with it is what the model gives, such as scores of words.

        The product of an input is not: a model of one layer is as small as was asked for.
        """
        products = (one.node for one in self.readers if one.way == "product")
        return any(node.graph is self.weight.home and _is_last(node) for node in products)

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and columns."""
        dims = self.weight.tensor.shape.numpy()
        if self.turned:
            return dims[1], dims[0]
        split = 2 if self.op in _RECURRENT else 1
        return int(np.prod(dims[:split])), int(np.prod(dims[split:]))

    def computes(self, block: int) -> bool:
        """Whether kernels can compute with blocks of this size."""
        columns = self.shape[1]
        looked_up = any(one.way == "lookup" for one in self.readers)
        fits = block in BLOCK_SIZES and columns >= block and not (looked_up and columns % block)
        return self.has_kernel and fits

    def block(self, wanted: int) -> int:
        """The size nearest to it that kernels compute with, or else the nearest divisor of a row."""
        columns = self.shape[1]
        divisors = (size for size in range(LEAST_BLOCK, columns + 1) if columns % size == 0)
        sizes = [size for size in BLOCK_SIZES if self.computes(size)] or list(divisors)
        return min(sizes, key=lambda size: abs(math.log(size / wanted)))

    def rows(self) -> Array:
        """The weight as [channels, columns]; a view of its file."""
        array = self.weight.tensor.numpy()
        return array.T if self.turned else array.reshape(self.shape)


def places(model: Model, run: Run) -> Iterator[Place]:
    """All places of the main graph and its subgraphs; those that have a reason against them are refused."""
    shapes = run.shapes(model)
    for value, reason in others(model, LEAST):
        run.journal.refuse(RULE, f"'{value.name}'", reason)
    for weight in weights(model):
        if weight.home is not model.ir.graph or weight.tensor.size < LEAST:
            continue
        readers = [_reader(use, shapes) for use in _uses(weight)]
        known = tuple(one for one in readers if one is not None)
        if known and len(known) < len(readers):
            run.journal.refuse(RULE, f"'{weight.name}'", "it is also read by what may need all of its digits")
        elif any(run.keeps(one.node) for one in known):
            run.journal.refuse(RULE, f"'{weight.name}'", "it is to be kept (--keep)")
        elif known and (place := Place(weight, known)).shape[1] < LEAST_BLOCK:
            told = f"only {place.shape[1]} of its numbers are summed up, too few to share a scale"
            run.journal.refuse(RULE, f"'{weight.name}'", told)
        elif known:
            yield place


@dataclass(frozen=True)
class _Use:
    """One use of a weight of some rank, right at a node's input or behind a Transpose of the weight."""

    node: ir.Node
    index: int
    rank: int
    transposed: bool


def _uses(weight: Weight) -> Iterator[_Use]:
    rank = len(weight.tensor.shape)
    for use in weight.value.uses():
        node, index = use.node, use.idx
        turns = g.is_op(node, "Transpose") and rank == 2 and g.attribute(node, "perm", (1, 0)) == (1, 0)
        if turns and not node.outputs[0].is_graph_output():
            yield from (_Use(one.node, one.idx, rank, True) for one in node.outputs[0].uses())
        else:
            yield _Use(node, index, rank, False)


def _reader(use: _Use, shapes: Shapes) -> Reader | None:
    """What reads a weight so; ``None`` if it is not known to sum up products with it."""
    found = None
    if use.rank == 2:
        found = _product(use, shapes) or _lookup(use)
    if not use.transposed and g.is_op(use.node, *_RECURRENT, *_CONVOLUTIONS):
        recurrent = use.node.op_type in _RECURRENT
        if use.index in ((1, 2) if recurrent else (1,)):
            found = Reader(use.node, use.index, False, "stored")
    return found


def _is_last(node: ir.Node) -> bool:
    """Whether a product of what was computed ends the model."""
    first = any(one is not None and one.is_graph_input() for one in node.inputs)
    added = node.inputs[2:]  # of a Gemm
    return not first and all(g.constant(one) is not None for one in added) and _leaves(node.outputs[0])


def _leaves(value: ir.Value) -> bool:
    """Whether all that becomes of a value is what the model gives."""
    uses = list(value.uses())
    leaves = value.is_graph_output() or bool(uses)
    return leaves and all(_finishes(use.node, use.idx) for use in uses)


def _finishes(node: ir.Node, index: int) -> bool:
    """Whether a node only moves or adjusts what it reads there, and makes what the model gives."""
    others = [*node.inputs[:index], *node.inputs[index + 1 :]]
    adjusts = g.is_op(node, *_ADJUSTING) and all(g.constant(one) is not None for one in others)
    return (adjusts or g.is_op(node, *_SCORING, *_MOVING)) and all(map(_leaves, node.outputs))


def _lookup(use: _Use) -> Reader | None:
    """Rows of a table."""
    node = use.node
    fits = g.is_op(node, "Gather") and use.index == 0 and g.attribute(node, "axis", 0) == 0
    return Reader(node, 0, False, "lookup") if fits and not use.transposed else None


def _product(use: _Use, shapes: Shapes) -> Reader | None:
    """X·W is what kernels compute for X of rank 2 and more; W·X is only stored."""
    node, index = use.node, use.index
    right = index == 1
    if g.is_op(node, "MatMul"):
        rank = shapes.rank(node.inputs[0])
        kernel = right and rank is not None and rank > 1
        return Reader(node, index, right != use.transposed, "product" if kernel else "stored")
    if not g.is_op(node, "Gemm") or index > 1:
        return None
    plain = g.attribute(node, "alpha", 1.0) == 1 and g.attribute(node, "beta", 1.0) == 1
    kernel = right and plain and not g.attribute(node, "transA", 0)
    flipped = bool(g.attribute(node, "transB" if right else "transA", 0)) != use.transposed
    return Reader(node, index, right != flipped, "product" if kernel else "stored")
