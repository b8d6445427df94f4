"""Sizes as numbers: those that a run reads from a tensor, and those that a graph states for another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import RefusedError
from graphopt_passes.axes.edits import Edit, follows
from graphopt_passes.axes.site import Site, rule
from graphopt_passes.axes.space import Side

_READ = "reads its size at run time"


@rule("Shape")
def _shape(site: Site) -> None:
    """Sizes that are picked from the result cannot change; mostly only those of dynamic axes are."""
    x = site.input()
    axes = list(range(x.rank))[site.attr("start", 0) : site.attr("end", None)]
    picked = _picked(site.node.outputs[0], len(axes))
    site.freeze(x, _READ, [axis for i, axis in enumerate(axes) if i in picked])


def _picked(sizes: ir.Value, count: int) -> set[int]:
    """Which elements of a vector of sizes are used."""
    if sizes.is_graph_output():
        return set(range(count))
    found: set[int] = set()
    for use in sizes.uses():
        found |= _used(use.node, use.idx, count)
    return found


def _used(node: ir.Node, index: int, count: int) -> set[int]:
    """Which elements a node uses: those that a Gather or Slice with constant bounds picks, or all."""
    every = range(count)
    found = [array for value in node.inputs[1:] if (array := g.array(value)) is not None]
    if index != 0 or len(found) < len(node.inputs) - 1:
        return set(every)
    numbers = [[int(number) for number in array.ravel()] for array in found]
    if g.is_op(node, "Gather"):
        return {every[i] for i in numbers[0]}
    if g.is_op(node, "Slice") and len(numbers) >= 2:
        step = numbers[3][0] if len(numbers) > 3 else 1
        return set(every[numbers[0][0] : numbers[1][0] : step])
    return set(every)


@rule("Size")
def _size(site: Site) -> None:
    site.freeze(site.input(), _READ)


@rule("ConstantOfShape")
def _constant_of_shape(site: Site) -> None:
    """All elements are alike: any can go, if the size that is stated follows."""
    require_stated(site, 0)


@follows("ConstantOfShape")
def _state_shape(edit: Edit) -> None:
    state(edit, 0)


@rule("Expand")
def _expand(site: Site) -> None:
    """Axes of x broadcast; what comes of a dim of 1 can be cut alone."""
    x, y = site.input(), site.output()
    require_stated(site, 1)
    for axis in range(x.rank):
        at = axis + y.rank - x.rank
        if x.dims[axis] != 1 or y.dims[at] == 1:
            site.same(x, axis, y, at)


@follows("Expand")
def _state_expansion(edit: Edit) -> None:
    """The target may have fewer dims than the result."""
    state(edit, 1)


@rule("Tile")
def _tile(site: Site) -> None:
    """An element goes with all its copies."""
    x, y, repeats = site.input(), site.output(), site.at.get(1).vector
    if repeats is None:
        raise RefusedError("its repeats are not known")
    for axis, count in enumerate(repeats):
        if isinstance(count, int) and len(x.ids(axis)) and len(y.ids(axis)):
            site.unite(y.ids(axis).reshape(count, -1), x.ids(axis))
        else:
            _keep(site, (x, y), axis)


def _keep(site: Site, sides: Sequence[Side], axis: int) -> None:
    for side in sides:
        site.freeze(side, "repeats it", [axis])


@rule("Range", "NonZero", "EyeLike")
def _computed(site: Site) -> None:
    """Their sizes come from elements of operands."""
    site.freeze_all("its size is computed at run time")


def require_stated(site: Site, index: int) -> None:
    """The sizes that an operand states must be a constant, or such that some of them can be replaced.

    Raises:
        RefusedError: they are computed by an opset without Where.
    """
    if not site.is_constant(index) and site.at.opset < 9:
        raise RefusedError("its sizes are computed at run time, before opset 9")


def state(edit: Edit, index: int, axes: Sequence[int] | None = None) -> None:
    """Correct sizes that an operand states for the axes of the first output; -1 and 1 stay what they are.

    Args:
        edit: the node.
        index: of the operand.
        axes: the axis that each element is about; by default the last ones.
    """
    (count,) = edit.dims(edit.before.inputs[index])
    assert isinstance(count, int)
    about = list(range(edit.rank() - count, edit.rank())) if axes is None else list(axes)
    new = {i: len(kept) for i, axis in enumerate(about) if (kept := edit.made(axis)) is not None}
    if not new:
        return
    old = g.array(edit.node.inputs[index])
    if old is None:
        _select(edit, index, new, count)
    elif changed := {i: size for i, size in new.items() if old[i] not in (-1, 1)}:
        made = old.copy()
        made[list(changed)] = list(changed.values())
        edit.put(index, made)


def _select(edit: Edit, index: int, new: dict[int, int], count: int) -> None:
    """Where(known, new sizes, computed sizes)."""
    known, sizes = np.zeros(count, np.bool_), np.zeros(count, np.int64)
    known[list(new)], sizes[list(new)] = True, list(new.values())
    computed = edit.node.inputs[index]
    assert computed is not None and edit.node.graph is not None
    operands = [edit.constants.new(known, "is_cut"), edit.constants.new(sizes, "sizes"), computed]
    node = ir.Node("", "Where", operands)
    node.outputs[0].name = edit.constants.names.fresh(f"{computed.name}_cut")
    node.outputs[0].type, node.outputs[0].shape = computed.type, computed.shape
    edit.node.graph.insert_before(edit.node, [node])
    edit.node.replace_input_with(index, node.outputs[0])
