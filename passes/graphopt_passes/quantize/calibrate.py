"""The range of every activation: from its histogram, and from the error that its readers would see.

``auto`` gives the range of every method a trial on the samples: its error energy per channel, weighted by the
energy of the weights that read this channel, is the error of the layer's output, up to correlations. What is
added up over several readers is the share of the output's own energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.activations import Request, Statistics
from graphopt.errors import UsageError
from graphopt.model import Model
from graphopt.runtime.accumulators import Bins, Extent, Histogram
from graphopt.runtime.grid_errors import GridErrors, Losses
from graphopt_passes.quantize.consumers import Reading, readings
from graphopt_passes.quantize.known_ranges import known_bounds
from graphopt_passes.quantize.ranges import Form, Range, candidates, kl, minmax, mse, percentile, steps

METHODS: dict[str, Callable[[Any, Form], Range]] = {
    "minmax": lambda extremes, form: minmax(extremes),
    "percentile": lambda bins, form: percentile(bins, 99.99),
    "kl": kl,
    "mse": mse,
}
Gather = Callable[[Iterable[Request]], Statistics]
"""What answers requests for statistics, such as :meth:`graphopt.calibration.Calibration.gather`."""


@dataclass(frozen=True)
class Ranges:
    """What was found.

    Attributes:
        found: range by value name.
        absent: why other values have none.
    """

    found: Mapping[str, Range]
    absent: Mapping[str, str] = field(default_factory=dict)


def find_ranges(model: Model, forms: Mapping[str, Form], gather: Gather, method: str = "auto") -> Ranges:
    """Choose a range for each value.

    Args:
        model: that the values belong to.
        forms: value name → the kind of its grid.
        gather: asked for histograms, by ``auto`` also for errors on grids.
        method: ``auto``, or one of METHODS for all.

    Raises:
        UsageError: there is no such method.
        GraphoptError: what ``gather`` raises.
    """
    if method != "auto" and method not in METHODS:
        raise UsageError(f"no such way to choose ranges: {method!r} (auto, {', '.join(METHODS)})")
    values = {value.name or "": value for graph in g.graphs(model.ir) for value in g.defined(graph)}
    found = {name: fixed for name in forms if (fixed := _fixed(values.get(name))) is not None}
    rest = [name for name in forms if name not in found]
    kind = Extent() if method == "minmax" else Histogram()  # extents take a fraction of the time
    statistics = gather([Request(name, kind) for name in rest])
    absent = {request.value: why for request, why in statistics.absent.items()}
    seen = {name: statistics.get(name, kind) for name in rest if name not in absent}
    if method == "auto":
        found |= _by_error(values, forms, seen, gather)
    else:
        found |= {name: METHODS[method](one, forms[name]) for name, one in seen.items()}
    return Ranges({name: _bounded(found[name], values[name]) for name in forms if name in found}, absent)


def _by_error(
    values: Mapping[str, ir.Value], forms: Mapping[str, Form], bins: Mapping[str, Bins], gather: Gather
) -> dict[str, Range]:
    """The range with which the readers' outputs lose least; without a reader, that of ``mse``."""
    found: dict[str, Range] = {}
    trials: dict[str, tuple[Range, ...]] = {}
    requests: dict[str, Request] = {}
    for name, one in bins.items():
        layers = readings(values[name])
        tried = candidates(one, forms[name]) if layers else (mse(one, forms[name]),)
        if len(tried) == 1:
            found[name] = tried[0]
            continue
        grids = tuple(steps(forms[name].grid(r.low, r.high)) for r in tried)
        trials[name], requests[name] = tried, Request(name, GridErrors(grids, layers[0].axis))
    losses = gather(requests.values())
    for name, tried in trials.items():
        share = _share(losses.get(name, requests[name].kind), readings(values[name]))
        found[name] = tried[int(np.argmin(share))] if share is not None else mse(bins[name], forms[name])
    return found


def _share(losses: Losses | None, layers: list[Reading]) -> np.ndarray | None:
    """The error of each grid at the outputs of all readers, as shares of the outputs' energies, added up."""
    if losses is None:
        return None
    total = np.zeros(len(losses.grids))
    for layer in layers:
        if layer.axis == layers[0].axis and layer.energy.size == losses.energy.size:
            total += losses.errors @ layer.energy / max(float(losses.energy @ layer.energy), 1e-300)
    return total


def _fixed(value: ir.Value | None) -> Range | None:
    """The range that the operator alone decides."""
    low, high = known_bounds(value) if value is not None else (None, None)
    return None if low is None or high is None else Range(min(low, 0.0), max(high, 0.0), "known")


def _bounded(found: Range, value: ir.Value) -> Range:
    """The range without what the operator cannot give."""
    low, high = known_bounds(value)
    return Range(
        found.low if low is None else max(found.low, min(low, 0.0)),
        found.high if high is None else min(found.high, max(high, 0.0)),
        found.method,
    )
