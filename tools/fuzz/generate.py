"""A random model from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import onnx

from graphopt.runtime.worker import Worker
from tools.fuzz import control, elementwise, linear, shapes
from tools.fuzz.builder import Builder, Value, needed

_INPUTS: tuple[tuple[int | str, ...], ...] = (
    ("N", 4, 6, 6),
    ("N", 3, "M"),
    (2, 4, 5, 5),
    ("N", "M"),
    ("N", 4),
    (3, 4),
    (1, 4, 7),
    (2,),
    (),
)
_PLAIN: Mapping[Callable[[Builder], object], float] = {
    **elementwise.DRAWS,
    **linear.DRAWS,
    **shapes.DRAWS,
    Builder.again: 1,
}


def generate(seed: int, worker: Worker) -> onnx.ModelProto:
    """The model of a seed; it runs in ONNX Runtime for all of ``feeds.SIZES``."""
    rng = np.random.default_rng(seed)
    b = Builder(worker, rng, opset=int(rng.integers(11, 23)))
    for _ in range(b.integer(1, 3)):
        b.input(b.choice(elementwise.KINDS), b.choice(_INPUTS))
    b.input("float32", b.choice(_INPUTS[:3]))
    if b.chance(0.3):
        b.input("bool", ())
    if b.chance(0.2):
        dims = b.choice(([], [4], [1, 4, 1, 1]))
        b.constant(elementwise.drawn(b, "float32", dims), overridable=True)
    for _ in range(b.integer(3, 16)):
        _step(b)
    return b.model(b.scope.graph("fuzz", _outputs(b)))


def _step(b: Builder) -> None:
    """A few draws until one runs."""
    inner = {partial(draw, draw=_plain): weight for draw, weight in control.DRAWS.items()}
    any(b.attempt(partial(_weighted, draws=inner) if b.chance(0.15) else _plain) for _ in range(5))


def _plain(b: Builder) -> None:
    if len(b.scopes) > 1 and b.chance(0.1):
        _weighted(b, {partial(draw, draw=_plain): w for draw, w in control.DRAWS.items()})
    else:
        _weighted(b, _PLAIN)


def _weighted(b: Builder, draws: Mapping[Callable[[Builder], object], float]) -> None:
    weights = np.array(list(draws.values()))
    list(draws)[int(b.rng.choice(len(weights), p=weights / weights.sum()))](b)


def _outputs(b: Builder) -> list[onnx.ValueInfoProto]:
    """Most values that nothing reads, and a few others."""
    read = {name for node in b.scope.nodes for name in needed([node])}
    made = {name for node in b.scope.nodes if node.op_type != "Constant" for name in node.output}
    chosen = [v for v in b.scope.values if v.name in made and b.chance(0.1 if v.name in read else 0.8)]
    return [_declared(b, value) for value in chosen or b.scope.values[-1:]]


def _declared(b: Builder, value: Value) -> onnx.ValueInfoProto:
    """An output with named dims, or its rank only: a number may be wrong for sizes that were not tried."""
    named = [f"{value.name}_{axis}" for axis in range(value.rank)]
    return value.info(named if b.chance(0.7) else [None] * value.rank)
