"""Four strided slices of an image, concatenated, are one SpaceToDepth (the "Focus" stem of YOLO models).

    Concat₁(x[…, i::2, j::2] for (i, j) in order) = Gather₁(SpaceToDepth₂(x), p)

SpaceToDepth puts channel c of the offset (i, j) at (2i + j)·C + c, so that p = [(2i + j)·C + c for (i, j) in
order, for c in 0…C−1]. A Conv that follows takes the permutation into its weights:

    Conv(Gather₁(x, p), W) = Conv(x, W'),   W'[:, p] = W

Where an axis of the image has an odd length, the patches differ in shape, and Concat fails. One length is an
exception: the patches of a single row have one row or none, and ONNX Runtime skips empty parts, which the
standard does not allow. SpaceToDepth fails there. Such an image is refused if its shape is static; for a
dynamic axis the standard is taken at its word, since no exporter's graph says that an image has two rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match, Rule, RulePass, any_, const, maybe, op

_BLOCK = 2
_IMAGE_AXES = (2, 3)


class SliceConcatToSpaceToDepth(Rule):
    """Concat₁ of the four x[…, i::2, j::2] = Gather₁(SpaceToDepth₂(x), p)."""

    name = "slices-to-space-to-depth"
    pattern = op("Concat", any_("a"), any_("b"), any_("c"), any_("d"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """One SpaceToDepth, and a Gather of its channels unless the order is its own."""
        patches = [Patch.of(match[name]) for name in "abcd"]
        if any(patch is None or patch.steps != (_BLOCK, _BLOCK) for patch in patches):
            return None
        found = [patch for patch in patches if patch is not None]
        channels = self._channels(match, found)
        match.nodes |= {g.label(node): node for patch in found for node in patch.nodes}
        order = [_BLOCK * patch.starts[0] + patch.starts[1] for patch in found]
        depth = match.op("SpaceToDepth", [found[0].source], {"blocksize": _BLOCK})
        if order == sorted(order):
            return depth
        index = np.concatenate([np.arange(channels, dtype=np.int64) + channels * block for block in order])
        return match.op("Gather", [depth, match.constant(index, "channel_order")], {"axis": 1})

    def _channels(self, match: Match, patches: list[Patch]) -> int:
        shapes = match.run.shapes(match.model)
        source = patches[0].source
        dims = shapes.dims(source)
        match.require(g.attribute(match.root, "axis") == 1, "the patches are not concatenated as channels")
        match.require(all(patch.source is source for patch in patches), "the slices are of different values")
        offsets = {patch.starts for patch in patches}
        match.require(len(offsets) == _BLOCK**2, "the slices do not cover each offset once")
        match.require(dims is not None and len(dims) == 4, "the source's rank is not known to be 4")
        assert dims is not None
        match.require(shapes.dtype(source) is ir.DataType.FLOAT, "ONNX Runtime has it for float32 only")
        match.require(isinstance(dims[1], int), "the number of channels is not static")
        match.require(1 not in dims[2:], "an image of one row or column has empty patches")
        inner = {node for patch in patches for node in patch.nodes} | {match.root}
        match.require(all(patch.is_private(inner) for patch in patches), "a slice is needed elsewhere")
        return int(dims[1])


@dataclass(frozen=True)
class Patch:
    """A chain of constant Slices over the image axes: source[…, starts₀::steps₀, starts₁::steps₁]."""

    source: ir.Value
    starts: tuple[int, ...]
    steps: tuple[int, ...]
    nodes: tuple[ir.Node, ...]

    @classmethod
    def of(cls, value: ir.Value) -> Patch | None:
        """Follow Slices upwards; ``None`` when one is not of this form or an axis is sliced twice."""
        bounds: dict[int, tuple[int, int]] = {}
        nodes: list[ir.Node] = []
        node = value.producer()
        while node is not None and g.is_op(node, "Slice") and len(bounds) < len(_IMAGE_AXES):
            found = _bounds(node)
            if found is None or bounds.keys() & found.keys() or node.inputs[0] is None:
                return None
            bounds |= found
            nodes.append(node)
            value, node = node.inputs[0], node.inputs[0].producer()
        if bounds.keys() != set(_IMAGE_AXES):
            return None
        starts, steps = zip(*(bounds[axis] for axis in _IMAGE_AXES), strict=True)
        return cls(value, starts, steps, tuple(nodes))

    def is_private(self, inner: set[ir.Node]) -> bool:
        """Whether only the matched nodes use the slices."""
        outputs = [node.outputs[0] for node in self.nodes]
        return all(
            not value.is_graph_output() and all(use.node in inner for use in value.uses())
            for value in outputs
        )


def _bounds(node: ir.Node) -> dict[int, tuple[int, int]] | None:
    """Axis → (start, step) of a Slice with constant starts within a block that runs to each axis's end."""
    arrays = [g.array(value) for value in node.inputs[1:]]
    if len(arrays) < 4 or any(array is None for array in arrays):
        return None
    starts, ends, axes, steps = ([int(n) for n in array.ravel()] for array in arrays if array is not None)
    if min(starts) < 0 or max(starts) >= _BLOCK or min(axes) < 0 or min(ends) < np.iinfo(np.int32).max:
        return None
    return dict(zip(axes, zip(starts, steps, strict=True), strict=True))


class ConvAfterChannelGather(Rule):
    """Conv(Gather₁(x, p), W) = Conv(x, W') with W'[:, p] = W, for a permutation p and group 1."""

    name = "conv-after-channel-gather"
    pattern = op("Conv", op("Gather", any_("x"), const("p")), const("w"), maybe("b"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The Conv on the Gather's input, its weights permuted along the input channels."""
        index, weight = match.array("p"), match.array("w")
        match.require(g.attribute(match.node("Gather"), "axis", 0) == 1, "the Gather is not along channels")
        match.require(g.attribute(match.root, "group", 1) == 1, "the Conv is grouped")
        match.require(len(match["w"].uses()) == 1, "its weight is shared")
        is_permutation = index.ndim == 1 and sorted(index.tolist()) == list(range(weight.shape[1]))
        match.require(is_permutation, "the Gather does not permute the channels")
        permuted = np.empty_like(weight)
        permuted[:, index] = weight
        inputs = [match["x"], match.constant(permuted, f"{match['w'].name}_permuted"), match.get("b")]
        return match.op("Conv", inputs, list(match.root.attributes.values()))


@dataclass(frozen=True)
class SlicesToSpaceToDepth(RulePass):
    """Replace concatenated strided slices by SpaceToDepth, its channel order taken into the next Conv."""

    name: ClassVar[str] = "slices-to-space-to-depth"
    rules: ClassVar[tuple[type[Rule], ...]] = (SliceConcatToSpaceToDepth, ConvAfterChannelGather)
