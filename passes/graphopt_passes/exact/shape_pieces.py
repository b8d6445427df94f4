"""The cheapest nodes that compute a known symbolic vector: constants, and runs of some tensor's dims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match
from graphopt.shapes.inference import Shapes
from graphopt.shapes.symbols import Dim

SLICED_SHAPE = 15  # the opset since which Shape takes start and end


@dataclass(frozen=True)
class Run:
    """Part of a vector.

    Attributes:
        length: how many elements it covers.
        source: the tensor whose dims from ``start`` on they are; ``None`` for numbers.
        kept: the value that holds exactly them, when it is used as it is.
    """

    length: int
    source: ir.Value | None = None
    start: int = 0
    kept: ir.Value | None = None

    def nodes(self, shapes: Shapes, opset: int) -> int:
        """How many nodes compute it."""
        if self.source is None:
            return 0
        return 1 if self.length == shapes.rank(self.source) or opset >= SLICED_SHAPE else 2


def sources(match: Match, value: ir.Value) -> list[ir.Value]:
    """Tensors whose dims may be asked for at the root: the model's inputs, and those of Shapes before it."""
    graph = match.root.graph
    found = list(match.model.ir.graph.inputs) if graph is match.model.ir.graph else []
    for node in _ancestors(value):
        if g.is_op(node, "Shape") and node.inputs[0] is not None and node.inputs[0] not in found:
            found.append(node.inputs[0])
    return found


def _ancestors(value: ir.Value, limit: int = 64) -> Iterator[ir.Node]:
    seen: dict[ir.Node, None] = {}
    stack = [value.producer()]
    while stack and len(seen) < limit:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen[node] = None
        yield node
        if not g.is_op(node, "Shape"):
            stack.extend(v.producer() for v in node.inputs if v is not None)


def plan(
    shapes: Shapes, vector: Sequence[Dim], tensors: Sequence[ir.Value], kept: Sequence[Run]
) -> list[Run] | None:
    """Cover a vector from the front with the longest runs; ``None`` when an element has no source.

    Args:
        shapes: what is known of the tensors.
        vector: the elements to compute.
        tensors: tensors whose dims may be used.
        kept: runs that exist already and cover the vector, in order; they are used where nothing else fits.
    """
    starts = {}
    at = 0
    for run in kept:
        starts[at] = run
        at += run.length
    runs: list[Run] = []
    at = 0
    while at < len(vector):
        found = _longest(shapes, vector[at:], tensors) or starts.get(at)
        if found is None:
            return None
        runs.append(found)
        at += found.length
    return runs


def _longest(shapes: Shapes, rest: Sequence[Dim], tensors: Sequence[ir.Value]) -> Run | None:
    numbers = next((i for i, dim in enumerate(rest) if isinstance(dim, str)), len(rest))
    if numbers:
        return Run(numbers)
    best: Run | None = None
    for tensor in tensors:
        dims = shapes.dims(tensor) or ()
        for start in range(len(dims)):
            length = _common(dims[start:], rest)
            if length > (best.length if best else 0):
                best = Run(length, tensor, start)
    return best


def _common(dims: Sequence[Dim], rest: Sequence[Dim]) -> int:
    """How many leading elements agree, of which the last is no number (numbers cost nothing)."""
    length = 0
    for i, (a, b) in enumerate(zip(dims, rest, strict=False)):
        if a != b:
            break
        if isinstance(a, str):
            length = i + 1
    return length


def removed(root: ir.Node, runs: Sequence[Run]) -> set[ir.Node]:
    """The nodes that go when the runs take the root's place, but not what these read, nor Constants."""
    found = {node for node in g.dying(root) if not g.is_op(node, "Constant")}
    stack = [value.producer() for run in runs for value in (run.kept, run.source) if value is not None]
    while stack:
        node = stack.pop()
        if node is not None and node in found:
            found.discard(node)
            stack.extend(value.producer() for value in node.inputs if value is not None)
    return found


def build(match: Match, runs: Sequence[Run], vector: Sequence[Dim], opset: int) -> ir.Value:
    """Write the nodes of a plan before the root."""
    parts: list[ir.Value] = []
    made: dict[Run, ir.Value] = {}
    at = 0
    for run in runs:
        if run.source is None or run not in made:
            made[run] = _part(match, run, vector[at : at + run.length], opset)
        parts.append(made[run])
        at += run.length
    return parts[0] if len(parts) == 1 else match.op("Concat", parts, {"axis": 0})


def _part(match: Match, run: Run, elements: Sequence[Dim], opset: int) -> ir.Value:
    if run.kept is not None:
        return run.kept
    if run.source is None:
        return match.constant(np.array(elements, np.int64), f"{match.root.outputs[0].name}_numbers")
    return dims_of(match, run.source, run.start, run.length, opset)


def dims_of(match: Match, source: ir.Value, start: int, length: int, opset: int) -> ir.Value:
    """A run of a tensor's dims as a vector."""
    if length == match.run.shapes(match.model).rank(source):
        return match.op("Shape", [source])
    if opset >= SLICED_SHAPE:
        return match.op("Shape", [source], {"start": start, "end": start + length})
    index = match.constant(np.arange(start, start + length, dtype=np.int64), f"{source.name}_axes")
    return match.op("Gather", [match.op("Shape", [source]), index])
