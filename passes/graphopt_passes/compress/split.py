"""Writes a layer as two thinner ones: y = B·(A·x) + b.

A Gemm or MatMul becomes two. A Conv becomes one with its kernel, strides and padding and few channels out,
and one of 1×1 behind it. The second is the node that was there, so that the name of its output, its bias and
what is fused to it stay.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.accumulators import Array
from graphopt_passes.compress.low_rank import Factors
from graphopt_passes.refit.linear import Linear

RULE = "split-layer"
_OF_PATCHES = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")


def split(layer: Linear, factors: Factors, model: Model, run: Run) -> str:
    """Split one layer in place.

    Args:
        layer: of the model.
        factors: A and B, and what is added to what the layer gives; None if it cannot be.
        model, run: what is changed, and its record.

    Returns:
        The name of what the first layer makes.
    """
    run.journal.admit(RULE, layer.name)
    write = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}[layer.op]
    thin = write(layer, factors.first, factors.second, model, run)
    if factors.shift is not None:
        Linear.of(layer.node).shift(model, run, factors.shift)
    return thin.name or ""


def _conv(layer: Linear, first: Array, second: Array, model: Model, run: Run) -> ir.Value:
    node, weight = layer.node, g.constant(layer.node.inputs[1])
    assert weight is not None
    _, inner, *kernel = weight.shape.numpy()
    attributes = [node.attributes[name] for name in _OF_PATCHES if name in node.attributes]
    thin = _before(layer, first.reshape(-1, inner, *kernel), attributes, model, run)
    for name in _OF_PATCHES:
        node.attributes.pop(name, None)
    ones = [1] * len(kernel)
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", ones)
    _feed(layer, thin, second.reshape(*second.shape, *ones), model, run)
    return thin


def _gemm(layer: Linear, first: Array, second: Array, model: Model, run: Run) -> ir.Value:
    node, turned = layer.node, layer.is_turned
    attributes = [node.attributes[name] for name in ("transA", "transB") if name in node.attributes]
    thin = _before(layer, first.T if turned else first, attributes, model, run)
    node.attributes.pop("transA", None)
    _feed(layer, thin, second.T if turned else second, model, run)
    return thin


def _matmul(layer: Linear, first: Array, second: Array, model: Model, run: Run) -> ir.Value:
    thin = _before(layer, first.T, [], model, run)
    _feed(layer, thin, second.T, model, run)
    return thin


def _before(layer: Linear, weight: Array, attributes: list[ir.Attr], model: Model, run: Run) -> ir.Value:
    """The output of a new node of the same operator in front of a layer, which reads what the layer reads."""
    node = layer.node
    value = run.new_constant(model, node, np.ascontiguousarray(weight), f"{layer.name}_first")
    copies = [ir.Attr(one.name, one.type, one.value) for one in attributes]
    thin = ir.Node("", node.op_type, [node.inputs[0], value], copies)
    thin.outputs[0].name = run.names(model).fresh(f"{layer.name}_thin")
    thin.outputs[0].type = node.outputs[0].type
    assert node.graph is not None
    node.graph.insert_before(node, [thin])
    return thin.outputs[0]


def _feed(layer: Linear, thin: ir.Value, weight: Array, model: Model, run: Run) -> None:
    """Let a layer read the thin one's output, with another weight."""
    node, old = layer.node, layer.node.inputs[1]
    assert old is not None
    node.replace_input_with(0, thin)
    made = run.new_constant(model, node, np.ascontiguousarray(weight), f"{layer.name}_second")
    node.replace_input_with(1, made)
    run.drop_constant(old)
