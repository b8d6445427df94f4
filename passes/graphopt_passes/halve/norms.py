"""Normalizations that are spelled out: the mean of squares, its root, and the division by it.

    y = x / √(mean(x²) + ε)

Squares overflow float16 from 256 on; the quotient of an infinite root is 0, so that nothing looks wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graph as g

_MEANS = ("ReduceMean", "ReduceSum", "GlobalAveragePool")
_ON_THE_WAY = ("Sqrt", "Pow", "Reciprocal")
_WITH_A_CONSTANT = ("Add", "Max", "Clip")  # epsilons


@dataclass(frozen=True)
class Norm:
    """A normalization.

    Attributes:
        square: the node that squares.
        mean: the node that takes the mean.
    """

    square: ir.Node
    mean: ir.Node

    def nodes(self) -> Iterator[ir.Node]:
        """The nodes from the squares to the division."""
        yield self.square
        yield from with_readers(self.mean)


def norms(model: ir.Model) -> Iterator[Norm]:
    """All that are spelled out."""
    for node in g.nodes(model):
        if g.is_op(node, *_MEANS) and node.inputs[0] is not None:
            square = node.inputs[0].producer()
            if square is not None and _is_square(square):
                yield Norm(square, node)


def with_readers(node: ir.Node) -> Iterator[ir.Node]:
    """A node and what is done with its result until it divides or multiplies something; a logarithm, too."""
    yield node
    for use in (use for value in node.outputs for use in value.uses()):
        if _is_on_the_way(use.node):
            yield from with_readers(use.node)
        elif g.is_op(use.node, "Div", "Mul", "Log"):
            yield use.node


def _is_on_the_way(node: ir.Node) -> bool:
    if g.is_op(node, *_WITH_A_CONSTANT):
        return any(g.constant(value) is not None for value in node.inputs)
    return g.is_op(node, *_ON_THE_WAY)


def _is_square(node: ir.Node) -> bool:
    if g.is_op(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    exponent = g.array(node.inputs[1], limit=1) if g.is_op(node, "Pow") else None
    return exponent is not None and bool(np.all(exponent == 2))
