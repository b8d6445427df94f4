"""HardSigmoid and HardSwish, spelled out in operators that have integer kernels, and put together again.

    HardSigmoid(x) = max(0, min(1, α·x + β)) = α · Clip(x + β/α, 0, 1/α)
    HardSwish(x) = x · HardSigmoid(x) with α = 1/6 and β = 1/2

The Clip is what the grid of the sum cuts off, and the factor only a step (ONNX operators HardSigmoid and
HardSwish). On floats the single operators are faster, so they come back where no piece is on integers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt_passes.quantize.placement import LEAST_FACTOR

# The attributes of HardSigmoid where a node states none, and those within HardSwish.
_SIGMOID = (0.2, 0.5)
_SWISH = (1 / 6, 0.5)


@dataclass(frozen=True)
class Whole:
    """The operator that was spelled out.

    Attributes:
        name: of the node.
        op_type: HardSigmoid or HardSwish.
        attributes: of the node.
        pieces: first outputs of the nodes in its place.
        numbers: their constants, in the order of :func:`_constants`.
    """

    name: str | None
    op_type: str
    attributes: tuple[ir.Attr, ...]
    pieces: frozenset[str]
    numbers: tuple[float, ...]

    def stands(self, chosen: Collection[str]) -> bool:
        """Whether it may come back, since none of its pieces is chosen."""
        return self.pieces.isdisjoint(chosen)


def spell(model: Model, run: Run) -> dict[str, Whole]:
    """Spell out the operators of a model in place; tells what made each value that is now made of pieces."""
    functions, shapes, found = g.function_graphs(model.ir), run.shapes(model), dict[str, Whole]()
    for node in list(g.nodes(model.ir)):
        if not g.is_op(node, "HardSigmoid", "HardSwish") or node.graph in functions or run.keeps(node):
            continue
        name, floats = g.output_name(node), shapes.dtype(node.inputs[0]) == ir.DataType.FLOAT
        if floats and _has_pieces(node) and run.names(model).is_unique(name):
            attributes = tuple(node.attributes.values())
            pieces = list(_pieces(_write(model, run, node)))
            names = frozenset(map(g.output_name, pieces))
            found[name] = Whole(node.name, node.op_type, attributes, names, _constants(pieces))
    return found


def assemble(model: Model, wholes: Mapping[str, Whole], chosen: Collection[str]) -> bool:
    """Put the operators together again of which no piece is chosen; whether there are any.

    Args:
        model: spelled out, or a clone of such a model; changed in place.
        wholes: from :func:`spell`.
        chosen: first outputs of nodes that are left as they are.
    """
    done = False
    for node in list(g.nodes(model.ir)):
        whole = wholes.get(g.output_name(node))
        if whole is None or node.op_type == whole.op_type or not whole.stands(chosen):
            continue
        pieces = list(_pieces(node))
        if _constants(pieces) == whole.numbers:  # a scale may have moved into them
            _put_together(pieces, whole)
            done = True
    return done


def _has_pieces(node: ir.Node) -> bool:
    """Whether the constants of the pieces are numbers, and the Clip's limits around zero."""
    alpha, beta = _factors(node)
    return LEAST_FACTOR < alpha < 1 / LEAST_FACTOR and 0 <= beta < 1 / LEAST_FACTOR


def _factors(node: ir.Node) -> tuple[float, float]:
    """α and β."""
    if node.op_type == "HardSwish":
        return _SWISH
    alpha, beta = _SIGMOID
    return float(g.attribute(node, "alpha", alpha)), float(g.attribute(node, "beta", beta))


def _write(model: Model, run: Run, node: ir.Node) -> ir.Node:
    """Write the pieces in the place of a node; the last of them."""
    alpha, beta = _factors(node)
    x, y, graph = node.inputs[0], node.outputs[0], node.graph
    assert x is not None and isinstance(graph, ir.Graph)

    def piece(op_type: str, inputs: list[ir.Value], *numbers: float) -> ir.Value:
        data = [np.array(number, np.float32) for number in numbers]
        constants = [run.new_constant(model, node, one, f"{y.name}_{op_type.lower()}") for one in data]
        made = ir.Node("", op_type, [*inputs, *constants])
        value = made.outputs[0]
        made.name = value.name = run.names(model).fresh(f"{y.name}_{op_type.lower()}_of")
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), y.shape
        graph.insert_before(node, [made])
        return value

    clipped = piece("Clip", [piece("Add", [x], beta / alpha)], 0.0, 1 / alpha)
    whole = clipped if node.op_type == "HardSigmoid" else piece("Mul", [x, clipped])
    last = piece("Mul", [whole], alpha)
    g.inherit(y, last)
    g.remove(node)
    maker = last.producer()
    assert maker is not None
    return maker


def _pieces(last: ir.Node) -> Iterator[ir.Node]:
    """The nodes of an operator that was spelled out, the last first."""
    node: ir.Node | None = last
    while node is not None:
        yield node
        if node.op_type == "Add":
            return
        inner = node.inputs[-1] if node.op_type == "Mul" and node is not last else node.inputs[0]
        node = inner.producer() if inner is not None else None


def _constants(pieces: list[ir.Node]) -> tuple[float, ...]:
    """The numbers that nodes read, from the last node to the first."""
    found = [g.array(value) for piece in pieces for value in piece.inputs]
    return tuple(float(number) for data in found if data is not None for number in data.reshape(-1))


def _put_together(pieces: list[ir.Node], whole: Whole) -> None:
    last, first = pieces[0], pieces[-1]
    graph = last.graph
    assert isinstance(graph, ir.Graph)
    node = ir.Node("", whole.op_type, [first.inputs[0]], whole.attributes, name=whole.name)
    graph.insert_before(last, [node])
    g.inherit(last.outputs[0], node.outputs[0])
    for piece in pieces:
        g.remove(piece)
