"""A normalization whose channels have constants of their own, and the linear layers that read them."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.rewrite import RefusedError
from graphopt_passes.quantize.chains import Shift, require
from graphopt_passes.quantize.layers import Layer, own_constant


@dataclass(frozen=True)
class Norm:
    """A value with a factor, and maybe a shift, per channel of its last axis.

    Attributes:
        name: of what the layers read.
        affine: the constants that make its channels.
        readers: all that reads the value.
    """

    name: str
    affine: tuple[Shift, ...]
    readers: tuple[Layer, ...]


def find_norms(model: Model, run: Run, rule: str, among: Container[str]) -> list[Norm]:
    """All of these values that are so, in the order of the graph; the journal gets the others' reasons."""
    found = []
    for node in g.nodes(model.ir):
        if g.output_name(node) not in among or not _is_norm(node):
            continue
        value = node.outputs[0]
        try:
            readers = tuple(_readers(run, value))
            found.append(Norm(g.output_name(node), tuple(_affine(run, node, readers[0].inputs)), readers))
        except (RefusedError, KeyError) as refused:
            run.journal.refuse(rule, f"'{value.name}'", str(refused.args[0]))
    return found


def _is_norm(node: ir.Node) -> bool:
    """Whether it is a LayerNormalization, or ends like one that is spelled out: Mul, or Add behind a Mul."""
    return g.is_op(node, "LayerNormalization", "Mul") or (g.is_op(node, "Add") and _product(node) is not None)


def _product(node: ir.Node) -> ir.Node | None:
    producers = [value.producer() for value in node.inputs if value is not None]
    return next((producer for producer in producers if g.is_op(producer, "Mul")), None)


def _affine(run: Run, node: ir.Node, size: int) -> list[Shift]:
    """The constants that make the channels: γ, and β where there is one."""
    require(not run.keeps(node), f"{g.label(node)} is to be kept (--keep)")
    if node.op_type == "LayerNormalization":
        indices = [index for index, value in enumerate(node.inputs) if index > 0 and value is not None]
        return [_per_channel(node, index, size) for index in indices]
    index = 1 if g.constant(node.inputs[1]) is not None else 0
    found = [_per_channel(node, index, size)]
    product = _product(node)
    if node.op_type == "Mul" or product is None:
        return found
    inner = product.outputs[0]
    alone = len(inner.uses()) == 1 and not inner.is_graph_output() and product.graph is node.graph
    require(alone, f"'{inner.name}' is used elsewhere, too")
    return found + _affine(run, product, size)


def _per_channel(node: ir.Node, index: int, size: int) -> Shift:
    shape = own_constant(node, index).shape.numpy()
    require(shape == (size,), f"input {index} of {g.label(node)} is not one number per channel")
    return Shift(node, index)


def _readers(run: Run, value: ir.Value) -> Iterator[Layer]:
    require(not value.is_graph_output(), f"'{value.name}' is a graph output")
    require(bool(value.uses()), f"'{value.name}' is not used")
    for use in value.uses():
        node = use.node
        require(g.is_op(node, "MatMul", "Gemm") and use.idx == 0, f"{g.label(node)} reads it, too")
        require(not run.keeps(node), f"{g.label(node)} is to be kept (--keep)")
        yield Layer.of(node)
