"""Replace shape computations by what shape inference proves about them, without fixing a dynamic dim.

Equal symbols are dims that are equal in every run that does not fail; any dim may be 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match, Rule, RulePass, any_, const, maybe, op
from graphopt.shapes.symbols import Dim, Symbols
from graphopt_passes.analysis.divisors import divided_by_zero
from graphopt_passes.exact import shape_pieces
from graphopt_passes.exact.merge_chains import axes_of
from graphopt_passes.exact.shape_pieces import Run

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Where", "ReduceProd", "ReduceSum")
_LOGIC = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not")
_MOVES = ("Gather", "Concat", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Expand", "Cast")
_TO_THE_END = 2**31 - 1  # exporters write this or more for the end of a Slice
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


class KnownVector(Rule):
    """A small integer tensor whose elements are all proved numbers is a constant."""

    pattern = op(
        ("Shape", "Size", "ConstantOfShape", "Range", *_MOVES, *_ARITHMETIC, *_LOGIC), any_("x"), more=True
    )

    def rewrite(self, match: Match) -> ir.Value | None:
        """The constant."""
        output = match.root.outputs[0]
        fact = match.run.shapes(match.model).fact(output)
        if fact.vector is None or fact.dtype not in _INTEGERS or fact.dims is None:
            return None
        if any(isinstance(element, str) for element in fact.vector):
            return None
        match.require(
            not output.is_graph_output(), f"graph output '{output.name}' would become an initializer"
        )
        data = np.array(fact.vector, fact.dtype.numpy()).reshape([len(fact.vector)] if fact.dims else [])
        zero = divided_by_zero(output, lambda: data)
        match.require(zero is None, zero or "")
        return match.constant(data, output.name or "known")


class ReshapeTarget(Rule):
    """Reshape(x, t) with t = (t₀, t₁, …): 0 for a tᵢ equal to dim i of x, -1 for one other unknown tᵢ.

    A 0 copies the dim, whatever it is. A -1 is what is left over, which ONNX Runtime computes only when no
    other element is 0: it is used only beside elements that cannot be 0, where a tᵢ of 0 would mean the same.
    """

    pattern = op("Reshape", any_("x"), any_("target"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The Reshape with a constant target."""
        if g.constant(match["target"]) is not None:
            return None
        shapes = match.run.shapes(match.model)
        vector = shapes.vector(match["target"])
        match.require(vector is not None, "the length of the target is not known")
        assert vector is not None
        zero_is_zero = bool(g.attribute(match.root, "allowzero", 0))
        match.require(not (zero_is_zero and 0 in vector), "the target holds a 0 that is no copy (allowzero)")
        target = _target(match, vector, shapes.dims(match["x"]) or ())
        name = f"{match.root.outputs[0].name}_shape"
        kept = [a for a in match.root.attributes.values() if a.name != "allowzero"]
        return match.op("Reshape", [match["x"], match.constant(np.array(target, np.int64), name)], kept)


def _target(match: Match, vector: tuple[Dim, ...], dims: tuple[Dim, ...]) -> list[int]:
    target: list[int] = []
    unknown = [
        i for i, element in enumerate(vector) if isinstance(element, str) and dims[i : i + 1] != (element,)
    ]
    match.require(len(unknown) <= 1, f"{len(unknown)} elements of the target are not known")
    for i, element in enumerate(vector):
        target.append(element if isinstance(element, int) else -1 if i in unknown else 0)
    symbols = match.run.shapes(match.model).symbols
    others = [element for i, element in enumerate(vector) if i not in unknown]
    sound = not unknown or (-1 not in others and all(map(symbols.is_nonzero, others)))
    match.require(sound, "a -1 is ambiguous beside elements that may be 0")
    return target


class RebuildVector(Rule):
    """A vector of dims = Concat of constants and Shape(t)[i:j] for tensors t with these dims, if shorter."""

    pattern = op((*_MOVES, *_ARITHMETIC), any_("x"), more=True)

    def rewrite(self, match: Match) -> ir.Value | None:
        """The shorter computation."""
        shapes = match.run.shapes(match.model)
        fact = shapes.fact(match.root.outputs[0])
        vector, root = fact.vector, match.root
        if vector is None or fact.dims is None or len(fact.dims) != 1 or fact.dtype is not ir.DataType.INT64:
            return None
        if not any(isinstance(element, str) for element in vector) or root.graph is None:
            return None
        opset = g.opset(match.model.ir, root.graph)
        runs = shape_pieces.plan(shapes, vector, shape_pieces.sources(match, root.outputs[0]), _kept(match))
        if runs is None:
            return None
        removed = shape_pieces.removed(root, runs)
        if sum(run.nodes(shapes, opset) for run in set(runs)) + (len(runs) > 1) >= len(removed):
            return None
        return shape_pieces.build(match, runs, vector, opset)


def _kept(match: Match) -> list[Run]:
    """The inputs of a Concat, which may stay as they are."""
    if not g.is_op(match.root, "Concat"):
        return []
    shapes = match.run.shapes(match.model)
    vectors = [shapes.vector(value) for value in match.root.inputs]
    if None in vectors:
        return []
    return [Run(len(v or ()), kept=value) for v, value in zip(vectors, match.root.inputs, strict=True) if v]


class DimOfInput(Rule):
    """Shape(x)[i] = Shape(t)[j] for the model's first input t with that dim, so that all ask the same."""

    pattern = op("Gather", op("Shape", any_("x"), node="shape", name="dims"), const("index"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The Gather on the Shape of the input."""
        index = match.array("index")
        shapes = match.run.shapes(match.model)
        vector = shapes.vector(match["dims"])
        if index.size != 1 or vector is None or match.root.graph is not match.model.ir.graph:
            return None
        element = vector[int(index.item())]
        inputs = match.model.ir.graph.inputs
        source = next((value for value in inputs if element in (shapes.dims(value) or ())), None)
        if source is None or source is match["x"]:
            return None
        position = (shapes.dims(source) or ()).index(element)
        where = match["index"]
        if position != index.item():
            where = match.constant(np.full_like(index, position), f"{source.name}_axis")
        attributes = list(match.root.attributes.values())
        return match.op("Gather", [match.op("Shape", [source]), where], attributes)


class TransposeOfGroups(Rule):
    """Reshape(Transpose(Reshape(x))) = Transpose'(x) when the Reshapes merge axes and split them again.

    Transposing a merged axis moves the group of axes that it is made of; what is split off afterwards are
    these axes again if the dims are equal, one by one.
    """

    pattern = op(
        "Reshape",
        op("Transpose", op("Reshape", any_("x"), any_("merge"), name="merged"), node="swap"),
        any_("split"),
    )

    def rewrite(self, match: Match) -> ir.Value | None:
        """One Transpose."""
        shapes = match.run.shapes(match.model)
        given = shapes.dims(match["x"])
        merged, result = shapes.dims(match["merged"]), shapes.dims(match.root.outputs[0])
        if given is None or merged is None or result is None or len(given) != len(result):
            return None
        groups = _groups(shapes.symbols, given, merged)
        match.require(groups is not None, "the first Reshape does not merge whole axes")
        assert groups is not None
        order = g.attribute(match.node("swap"), "perm") or range(len(merged))[::-1]
        perm = [axis for i in order for axis in groups[i]]
        match.require(
            tuple(given[i] for i in perm) == result, "the second Reshape does not split the same axes"
        )
        return match.op("Transpose", [match["x"]], {"perm": perm})


def _groups(symbols: Symbols, given: tuple[Dim, ...], merged: tuple[Dim, ...]) -> list[list[int]] | None:
    """Which consecutive axes each merged axis is made of; ``None`` when it is not made of whole axes."""
    groups: list[list[int]] = []
    axis = 0
    for i, dim in enumerate(merged):
        group: list[int] = []
        size: Dim = 1
        last = i == len(merged) - 1
        while axis < len(given) and (size != dim or last or not group):
            group.append(axis)
            size = symbols.multiply(size, given[axis])
            axis += 1
        if size != dim:
            return None
        groups.append(group)
    return groups if axis == len(given) else None


class GatherUnsqueeze(Rule):
    """Unsqueeze(Gather(x, i, axis), axis) = Gather(x, [i], axis)."""

    pattern = op(
        "Unsqueeze", op("Gather", any_("x"), const("index"), node="gather", name="picked"), maybe("axes")
    )

    def rewrite(self, match: Match) -> ir.Value | None:
        """The Gather with a vector of one index."""
        index = match.array("index")
        rank = match.run.shapes(match.model).rank(match["x"])
        if index.ndim or rank is None:
            return None
        axis = int(g.attribute(match.node("gather"), "axis", 0)) % rank
        axes = axes_of(match.root) or []
        match.require(len(axes) == 1 and axes[0] % rank == axis, "the new axis is not the gathered one")
        one = match.constant(index.reshape(1), f"{match['index'].name}_1d")
        return match.op("Gather", [match["x"], one], {"axis": axis})


class SliceSqueeze(Rule):
    """Squeeze(x[…, i:i+1, …], axis) = Gather(x, i, axis); both fail when i is out of range."""

    pattern = op(
        "Squeeze",
        op(
            "Slice",
            any_("x"),
            const("starts"),
            const("ends"),
            maybe("slice_axes"),
            maybe("steps"),
            node="slice",
        ),
        maybe("axes"),
    )

    def rewrite(self, match: Match) -> ir.Value | None:
        """The Gather of one position."""
        starts, ends = match.array("starts"), match.array("ends")
        rank = match.run.shapes(match.model).rank(match["x"])
        sliced, steps = g.array(match.get("slice_axes")), g.array(match.get("steps"))
        axes = axes_of(match.root) or []
        if len(starts) != 1 or rank is None or len(axes) != 1 or (match.get("steps") and steps is None):
            return None
        match.require(match.get("slice_axes") is None or sliced is not None, "the axes are no constant")
        axis = int(sliced.item()) % rank if sliced is not None else 0
        start, end = int(starts.item()), int(ends.item())
        one = end >= _TO_THE_END if start == -1 else end == start + 1
        if axes[0] % rank != axis or not one or (steps is not None and steps.item() != 1):
            return None
        index = match.constant(np.array(start, np.int64), f"{match.root.outputs[0].name}_index")
        return match.op("Gather", [match["x"], index], {"axis": axis})


@dataclass(frozen=True)
class SimplifyShapes(RulePass):
    """Replace shape computations by constants and shorter ones, without fixing a dynamic dim."""

    name: ClassVar[str] = "simplify-shapes"
    rules: ClassVar[tuple[type[Rule], ...]] = (
        KnownVector,
        TransposeOfGroups,
        ReshapeTarget,
        GatherUnsqueeze,
        SliceSqueeze,
        RebuildVector,
        DimOfInput,
    )
