"""Ranges that follow from the operator, whatever the data."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from graphopt import graph as g

Bounds = tuple[float | None, float | None]
"""Least and largest value, ``None`` where the operator sets no limit."""

_FIXED: dict[str, Bounds] = {
    "Softmax": (0.0, 1.0),
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softsign": (-1.0, 1.0),
    "Sin": (-1.0, 1.0),
    "Cos": (-1.0, 1.0),
    "Relu": (0.0, None),
    "Abs": (0.0, None),
    "Exp": (0.0, None),
    "Sqrt": (0.0, None),
    "Softplus": (0.0, None),
    "LogSoftmax": (None, 0.0),
}
# These give only numbers of their first input, or means of them.
_CARRIERS = (
    "Identity", "Dropout", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather",
    "Expand", "Split", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "DepthToSpace",
    "SpaceToDepth",
)  # fmt: skip


def known_bounds(value: ir.Value) -> Bounds:
    """What the operator that makes a value says about its numbers; those that move or average are skipped."""
    node = value.producer()
    while g.is_op(node, *_CARRIERS) and node is not None and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.domain not in g.DEFAULT_DOMAINS:
        return None, None
    rule: Callable[[ir.Node], Bounds] | None = {"Clip": _clip, "Elu": _elu}.get(node.op_type)
    return rule(node) if rule else _FIXED.get(node.op_type, (None, None))


def clip_limits(node: ir.Node) -> Bounds:
    """The limits of a Clip, infinite where it has none; ``None`` where they are computed."""
    return _limit(node, 1, "min", -math.inf), _limit(node, 2, "max", math.inf)


def _clip(node: ir.Node) -> Bounds:
    low, high = (None if limit is None or math.isinf(limit) else limit for limit in clip_limits(node))
    return low, high


def _limit(node: ir.Node, index: int, name: str, none: float) -> float | None:
    """An attribute up to opset 10, then an input."""
    if index < len(node.inputs) and node.inputs[index] is not None:
        found = g.array(node.inputs[index], 1)
        return float(found.item()) if found is not None and found.size else None
    return float(g.attribute(node, name, none))


def _elu(node: ir.Node) -> Bounds:
    alpha = float(g.attribute(node, "alpha", 1.0))
    return (-alpha, None) if alpha >= 0 else (None, None)
