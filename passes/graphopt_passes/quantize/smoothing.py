"""Channels scaled as a step: what calibration must see of a model, and the scaled copy."""

from __future__ import annotations

from graphopt import graph as g
from graphopt.activations import Request
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.accumulators import Extent
from graphopt.runtime.means import Mean
from graphopt_passes.quantize.calibrate import Gather
from graphopt_passes.quantize.smooth import INT8, Seen, smooth

_LAYERS = {"Conv": 1, "Gemm": -1, "MatMul": -1}


def smoothed(model: Model, run: Run, gather: Gather) -> Model | None:
    """A copy that computes the same with channels more alike; ``None`` if nothing could be smoothed."""
    seen = seen_by_layers(model, gather)
    copy = model.clone()
    return copy if smooth(copy, run, seen, INT8) else None


def seen_by_layers(model: Model, gather: Gather) -> dict[str, Seen]:
    """What each value was seen to be that a Conv, Gemm or MatMul reads beside a constant, by its name."""
    kinds = {name: (Extent(axis), Mean(axis)) for name, axis in _read(model).items()}
    statistics = gather(Request(name, kind) for name, pair in kinds.items() for kind in pair)
    seen: dict[str, Seen] = {}
    for name, (extent, mean) in kinds.items():
        limits, moments = statistics.get(name, extent), statistics.get(name, mean)
        if limits is not None and moments is not None:
            seen[name] = Seen(limits.low, limits.high, moments.second_moment, moments.mean)
    return seen


def _read(model: Model) -> dict[str, int]:
    """The axis of the channels of each value, unless layers read it along different ones."""
    found: dict[str, set[int]] = {}
    for node in g.nodes(model.ir):
        value = node.inputs[0] if g.is_op(node, *_LAYERS) else None
        if value is not None and g.constant(node.inputs[1]) is not None:
            found.setdefault(value.name or "", set()).add(_LAYERS[node.op_type])
    return {name: axes.pop() for name, axes in found.items() if len(axes) == 1}
