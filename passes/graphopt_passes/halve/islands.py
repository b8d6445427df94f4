"""Parts of a model that are float on purpose, or that have types of their own already."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphopt import graph as g
from graphopt_passes.halve.signatures import HALVES, TENSOR
from graphopt_passes.halve.types import Types

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_HALF_TENSORS = tuple(f"tensor({half})" for half in HALVES)
_INTEGERS = ("tensor(int64)", "tensor(int32)")


def quantized(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes that read what was dequantized or make what is quantized: integer kernels are made of them."""
    for node in g.nodes(model):
        reads = any(_is(value, _DEQUANTIZE) for value in node.inputs)
        if reads or any(g.is_op(use.node, _QUANTIZE) for value in node.outputs for use in value.uses()):
            yield node


def _is(value: ir.Value | None, op_type: str) -> bool:
    return value is not None and g.is_op(value.producer(), op_type)


def mixed(model: ir.Model, types: Types) -> Iterator[ir.Node]:
    """What computes in float behind a Cast from half, down to the Cast back, in a model that has both."""
    pending = [node for node in g.nodes(model) if _casts_up(node, types)]
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        behind = {use.node for v in node.outputs if types.of(v) == TENSOR for use in v.uses()}
        fresh = [one for one in behind - seen if not _casts_down(one, types)]
        seen.update(fresh)
        pending += fresh


def _casts_up(node: ir.Node, types: Types) -> bool:
    """A weight that is only stored as half is none."""
    if not g.is_op(node, "Cast") or g.constant(node.inputs[0]) is not None:
        return False
    return types.of(node.inputs[0]) in _HALF_TENSORS and types.of(node.outputs[0]) == TENSOR


def _casts_down(node: ir.Node, types: Types) -> bool:
    return g.is_op(node, "Cast") and types.of(node.outputs[0]) in _HALF_TENSORS


def shape_arithmetic(model: ir.Model, types: Types) -> Iterator[ir.Node]:
    """Float nodes between integers: all that they read comes from integers, and integers are made of it."""
    nodes = list(g.nodes(model))
    made, used = set[ir.Node](), set[ir.Node]()
    for node in nodes:
        if _made(node, types, made):
            made.add(node)
    for node in reversed(nodes):
        if _used(node, types, used):
            used.add(node)
    yield from (node for node in nodes if node in made and node in used)


def _made(node: ir.Node, types: Types, found: set[ir.Node]) -> bool:
    """Whether all floats that it reads are constants, or made so; what reads none must read integers."""
    if not any(types.of(value) == TENSOR for value in node.outputs):
        return False
    inputs = [value for value in node.inputs if value is not None and g.constant(value) is None]
    return bool(inputs) and all(
        types.of(value) in _INTEGERS if types.of(value) != TENSOR else value.producer() in found
        for value in inputs
    )


def _used(node: ir.Node, types: Types, found: set[ir.Node]) -> bool:
    """Whether every float that it makes becomes an integer."""
    floats = [value for value in node.outputs if types.of(value) == TENSOR]
    uses = [use.node for value in floats for use in value.uses()]
    if not uses or any(value.is_graph_output() for value in floats):
        return False
    return all(one in found or _to_integer(one, types) for one in uses)


def _to_integer(node: ir.Node, types: Types) -> bool:
    return g.is_op(node, "Cast") and types.of(node.outputs[0]) in _INTEGERS
