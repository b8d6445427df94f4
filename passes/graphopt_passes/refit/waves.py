"""Layers that can be fitted in one pass through the samples: none of them reads what another one gives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt_passes.refit.recurrent import AnyLayer

MOST = 32
"""Passes through the samples; deeper models fit neighbours together, on inputs as they were before both."""


def waves(model: Model, layers: Sequence[AnyLayer]) -> list[list[AnyLayer]]:
    """The layers of a model in its order, those that do not depend on each other together."""
    above = _layers_above(model, {layer.name for layer in layers})
    found: list[list[AnyLayer]] = []
    for layer in layers:
        if found and above[layer.name].isdisjoint(one.name for one in found[-1]):
            found[-1].append(layer)
        else:
            found.append([layer])
    size = -(-len(found) // MOST)
    starts = range(0, len(found), size or 1)
    return [list(itertools.chain(*found[start : start + size])) for start in starts]


def _layers_above(model: Model, names: set[str]) -> dict[str, frozenset[str]]:
    """For each of these layers, those that what it reads depends on."""
    seen: dict[ir.Value, frozenset[str]] = {}
    found = {}
    for node in model.ir.graph:
        above = frozenset().union(*(seen.get(value, frozenset()) for value in g.reads(node)))
        name = g.output_name(node)
        if name in names:
            found[name] = above
            above |= {name}
        seen.update(dict.fromkeys(node.outputs, above))
    return found
