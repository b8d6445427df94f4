"""Nodes that must stay float whatever an accuracy budget says, since halves could fail beyond the samples.

Each hazard has a rule of its own, here and in the modules beside this one; a node's first reason counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.activations import Request, Statistics
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.accumulators import Extent, Extremes
from graphopt.shapes.inference import Shapes
from graphopt.target import CPU
from graphopt_passes.halve.islands import mixed, quantized, shape_arithmetic
from graphopt_passes.halve.limits import Limits, limits
from graphopt_passes.halve.norms import Norm, norms, with_readers
from graphopt_passes.halve.signatures import TENSOR
from graphopt_passes.halve.types import Types

HEADROOM = 2.0
"""By how much other samples may exceed those that were seen."""
_WORST = 0.05  # relative error of a rounded constant
_SUMS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
)
_SCALE = 2.0**-9  # relative error of a rounded scale
_ANGLE = 8.0
_DIVIDES = ("Div", "Reciprocal", "Log", "Pow")

Reasons = Iterator[tuple[ir.Node, str]]


def requests(model: Model) -> list[Request]:
    """What to gather of the samples: the extent of every float tensor."""
    types = Types(model.ir)
    values = [value for graph in g.graphs(model.ir) for value in g.defined(graph)]
    wanted = [v for v in values if v.name and types.of(v) == TENSOR and g.constant(v) is None]
    return [Request(value.name or "", Extent()) for value in wanted]


def sizes(statistics: Statistics) -> dict[str, float]:
    """Elements of each value in a run, on average."""
    runs = max(statistics.samples, 1)
    return {request.value: found.count / runs for request, found in statistics.found.items()}


def hazards(model: Model, run: Run, half: str, statistics: Statistics) -> dict[str, str]:
    """First outputs of nodes that must stay float → why.

    Args:
        model: the float model; not changed.
        run: knows its shapes, and what the result is for.
        half: ``float16`` or ``bfloat16``.
        statistics: of ``requests``; values that are missing there count as harmless.
    """
    seen = _Seen(run.target.name, model.ir, limits(half), statistics, run.shapes(model), Types(model.ir))
    found: dict[str, str] = {}
    for rule in _RULES:
        for node, reason in rule(seen):
            found.setdefault(g.output_name(node), reason)
    return found


@dataclass(frozen=True)
class _Seen:
    """What the rules look at."""

    target: str
    model: ir.Model
    limits: Limits
    statistics: Statistics
    shapes: Shapes
    types: Types

    def floats(self) -> Iterator[ir.Value]:
        """The values of 32-bit floats."""
        for graph in g.graphs(self.model):
            yield from (value for value in g.defined(graph) if self.types.of(value) == TENSOR)

    def elements(self, value: ir.Value | None) -> float | None:
        """Elements of a value in a run; None if they are not known."""
        if value is None:
            return None
        if found := self.statistics.get(value.name or "", Extent()):
            return float(found.count) / max(self.statistics.samples, 1)
        dims = self.shapes.static_dims(value)
        return None if dims is None else float(math.prod(dims))


def around(value: ir.Value) -> Iterator[ir.Node]:
    """Who makes and who reads a value."""
    if (producer := value.producer()) is not None:
        yield producer
    yield from (use.node for use in value.uses())


def beyond(value: ir.Value, half: str, statistics: Statistics) -> str:
    """Why a value does not fit into a half type; empty if it does, or was not seen."""
    reach, largest = _reach(statistics.get(value.name or "", Extent())), limits(half).largest
    return (
        f"'{value.name}' reaches {reach:.3g}; {half} ends at {largest:.5g}"
        if reach * HEADROOM > largest
        else ""
    )


def _overflow(seen: _Seen) -> Reasons:
    """|x| ≤ largest / 2: what goes beyond becomes infinite, and NaN a step later."""
    for value in seen.floats():
        if told := beyond(value, seen.limits.name, seen.statistics):
            yield from ((node, told) for node in around(value))


def _underflow(seen: _Seen) -> Reasons:
    """max |x| ≥ least: below it digits are lost, down to zero."""
    for value in seen.floats():
        reach = _reach(seen.statistics.get(value.name or "", Extent()))
        if 0 < reach < seen.limits.least:
            told = f"'{value.name}' stays below {reach:.3g}, where {seen.limits.name} has few digits or none"
            yield from ((node, told) for node in around(value))


def _reach(found: Extremes | None) -> float:
    return 0.0 if found is None or not found.count else float(max(abs(found.low[0]), abs(found.high[0])))


def _constants(seen: _Seen) -> Reasons:
    """‖c − half(c)‖ ≤ 5 % of ‖c‖, and of every element that something is divided by."""
    for value in seen.floats():
        data = g.array(value)
        if data is None or not value.uses():
            continue
        error = seen.limits.error(data)
        readers = [use.node for use in value.uses()]
        if error > _WORST:
            told = f"{_spell(value, data)} is {_became(seen.limits, data)} in {seen.limits.name}"
            yield from ((reader, told) for node in readers for reader in with_readers(node))
            continue
        dividing = [node for node in readers if g.is_op(node, *_DIVIDES)]
        if dividing and _loses_an_element(seen.limits, data):
            told = f"'{value.name}' holds divisors that are lost in {seen.limits.name}"
            yield from ((node, told) for node in dividing)


def _loses_an_element(limit: Limits, data: np.ndarray[Any, Any]) -> bool:
    small = data[(data != 0) & (np.abs(data) < limit.least)]
    return bool(small.size and (np.abs(small - limit.rounded(small)) > _WORST * np.abs(small)).any())


def _spell(value: ir.Value, data: np.ndarray[Any, Any]) -> str:
    return f"{data.item():.3g}" if data.size == 1 else f"'{value.name}'"


def _became(limit: Limits, data: np.ndarray[Any, Any]) -> str:
    if data.size == 1:
        return f"{limit.rounded(data).item():.3g}"
    return "infinite" if np.isinf(limit.rounded(data)).any() else "lost"


def _deep(seen: _Seen) -> Reasons:
    """A sum of n equal terms stops growing at n = 2^(digits): terms are then below half a unit of it."""
    for node in g.nodes(seen.model):
        if g.is_op(node, "CumSum"):
            yield node, "it sums up step by step"
        if not g.is_op(node, *_SUMS):
            continue
        before, after = seen.elements(node.inputs[0]), seen.elements(node.outputs[0])
        if before and after and before / after > seen.limits.terms:
            yield node, f"it sums {before / after:,.0f} terms"


def _angles(seen: _Seen) -> Reasons:
    """|x| ≤ 8 in Sin and Cos: beyond, the steps of a half are a visible part of a turn."""
    for node in g.nodes(seen.model):
        if not g.is_op(node, "Sin", "Cos") or node.inputs[0] is None:
            continue
        reach = _reach(seen.statistics.get(node.inputs[0].name or "", Extent()))
        if reach * HEADROOM > _ANGLE:
            told = f"'{node.inputs[0].name}' reaches {reach:.3g}, too far for angles in {seen.limits.name}"
            yield from ((other, told) for other in around(node.inputs[0]))


def _norms(seen: _Seen) -> Reasons:
    """Squares overflow above 256, and lose digits below 0.008; numbers may be twice or half as large.

    max x² · 4 ≤ largest,    min mean(x²) / 4 ≥ least
    """
    if seen.limits.name != "float16":
        return
    for norm in norms(seen.model):
        if not _is_mild(seen, norm):
            told = "it is part of a normalization that is spelled out"
            yield from ((node, told) for node in norm.nodes())


def _is_mild(seen: _Seen, norm: Norm) -> bool:
    """Whether samples show that a norm's squares and their mean keep clear of both ends."""
    square = seen.statistics.get(norm.square.outputs[0].name or "", Extent())
    mean = seen.statistics.get(norm.mean.outputs[0].name or "", Extent())
    if square is None or mean is None or not (square.count and mean.count):
        return False
    room = HEADROOM**2
    return _reach(square) * room <= seen.limits.largest and float(mean.low[0]) >= seen.limits.least * room


def _quantized(seen: _Seen) -> Reasons:
    """CPUs make integer kernels of what lies between; GPUs compute it as it is written, on halves too."""
    yield from ((node, "it is quantized") for node in quantized(seen.model) if seen.target == CPU.name)


def _scales(seen: _Seen) -> Reasons:
    """|s − half(s)| ≤ 2⁻⁹·|s| for the scales of integers: half a step of the largest of 256 levels."""
    for node in g.nodes(seen.model):
        scale = g.array(node.inputs[1]) if g.is_op(node, "QuantizeLinear", "DequantizeLinear") else None
        if scale is not None and (np.abs(scale - seen.limits.rounded(scale)) > _SCALE * np.abs(scale)).any():
            yield node, f"its scale of {np.abs(scale).min():.3g} has few digits in {seen.limits.name}"


def _mixed(seen: _Seen) -> Reasons:
    yield from ((node, "the model casts up to float for it") for node in mixed(seen.model, seen.types))


def _shape_arithmetic(seen: _Seen) -> Reasons:
    told = "integers, such as dims, are computed of it"
    yield from ((node, told) for node in shape_arithmetic(seen.model, seen.types))


_RULES: tuple[Callable[[_Seen], Reasons], ...] = (
    _quantized,
    _scales,
    _mixed,
    _shape_arithmetic,
    _norms,
    _angles,
    _overflow,
    _underflow,
    _constants,
    _deep,
)
