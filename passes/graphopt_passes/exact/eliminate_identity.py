"""eliminate-identity: f(x) = x, so x takes the place of f(x).

Exporters leave such nodes behind: Dropout in inference, Casts to the same type, Reshapes to the same shape.
Where that depends on types and shapes, they are proved by shape inference; equal symbols are equal dims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Array, Match, Rule, RulePass, any_, const, maybe, op
from graphopt_passes.analysis.determinism import drops

_TO_THE_END = 2**31 - 1  # exporters write this or more for the end of a Slice


def same_dims(match: Match, a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are known to have equal dims."""
    shapes = match.run.shapes(match.model)
    dims = shapes.dims(a)
    return dims is not None and dims == shapes.dims(b)


def ints(match: Match, name: str) -> Array | None:
    """The constant of an optional input, or ``None`` when it is omitted; a computed one is a refusal."""
    value = match.get(name)
    if value is None:
        return None
    found = g.array(value)
    if found is None:
        raise KeyError(f"'{value.name}' is not constant")
    return found


class Identity(Rule):
    """Identity(x) = x; also Sum, Mean, Max, Min, Concat of x alone, and Split into one part."""

    name = "identity"
    pattern = op(("Identity", "Sum", "Mean", "Max", "Min", "Concat"), any_("x"))

    def rewrite(self, match: Match) -> ir.Value:
        """The only input."""
        return match["x"]


class SplitIntoOne(Rule):
    """Split(x) = (x) when there is one output."""

    pattern = op("Split", any_("x"), maybe("sizes"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The input."""
        return match["x"] if len(match.root.outputs) == 1 else None


class DropoutInInference(Rule):
    """Dropout(x) = x when it does not train."""

    pattern = op("Dropout", any_("x"), maybe("ratio"), maybe("training"))

    def rewrite(self, match: Match) -> ir.Value:
        """The input."""
        assert match.root.graph is not None
        match.require(not drops(match.root, g.opset(match.model.ir, match.root.graph)), "it may be training")
        return match["x"]


class CastToSameType(Rule):
    """Cast(x, type of x) = x."""

    pattern = op("Cast", any_("x"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The input, when its type is known to be the target."""
        dtype = match.run.shapes(match.model).dtype(match["x"])
        return match["x"] if dtype == g.attribute(match.root, "to") else None


class CastLikeKnown(Rule):
    """CastLike(x, y) = Cast(x, type of y), or x when that is its type, so that y is not needed."""

    pattern = op("CastLike", any_("x"), any_("y"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """A Cast with the same attributes, or nothing while the type of y is unknown."""
        shapes = match.run.shapes(match.model)
        dtype = shapes.dtype(match["y"])
        if dtype is None or dtype == ir.DataType.UNDEFINED:
            return None
        if shapes.dtype(match["x"]) == dtype:
            return match["x"]
        target = ir.AttrInt64("to", dtype.value)
        return match.op("Cast", [match["x"]], [target, *match.root.attributes.values()])


class SameShape(Rule):
    """f(x) = x for f that changes only the shape, when the shape does not change."""

    pattern = op(("Reshape", "Expand", "Squeeze", "Unsqueeze", "Flatten", "Tile"), any_("x"), maybe("how"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The input, when the dims are proved equal, or nothing is repeated."""
        if same_dims(match, match["x"], match.root.outputs[0]):
            return match["x"]
        repeats = g.array(match.get("how")) if match.root.op_type == "Tile" else None
        return match["x"] if repeats is not None and (repeats == 1).all() else None


class TransposeInOrder(Rule):
    """Transpose(x, p) = x when p keeps the order of all axes that are not 1, and the dims stay."""

    pattern = op("Transpose", any_("x"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The input."""
        perm = g.attribute(match.root, "perm")
        if perm is not None and list(perm) == sorted(perm):
            return match["x"]
        dims = match.run.shapes(match.model).dims(match["x"])
        if dims is None or not same_dims(match, match["x"], match.root.outputs[0]):
            return None
        perm = range(len(dims))[::-1] if perm is None else perm
        moved = [axis for axis in perm if dims[axis] != 1]
        return match["x"] if moved == sorted(moved) else None


class PadByNothing(Rule):
    """Pad(x, 0, …) = x in every mode."""

    pattern = op("Pad", any_("x"), maybe("pads"), maybe("value"), maybe("axes"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The input, when all pads are constant zeros."""
        pads = g.array(match.get("pads"))
        if pads is None:
            found = g.attribute(match.root, "pads", g.attribute(match.root, "paddings"))
            pads = None if found is None else np.array(found)
        return match["x"] if pads is not None and not pads.any() else None


class SliceOfEverything(Rule):
    """x[0:, …] = x."""

    pattern = op("Slice", any_("x"), const("starts"), const("ends"), maybe("axes"), maybe("steps"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The input, when all steps are 1 and nothing is cut off."""
        steps = ints(match, "steps")
        if steps is not None and not (steps == 1).all():
            return None
        whole = not match.array("starts").any() and bool((match.array("ends") >= _TO_THE_END).all())
        return match["x"] if whole or same_dims(match, match["x"], match.root.outputs[0]) else None


class ResizeToSameSize(Rule):
    """Resize(x) = x at scale 1: each output lies on an input."""

    pattern = op(("Resize", "Upsample"), any_("x"), maybe("roi"), maybe("scales"), maybe("sizes"))
    exact_at_one: ClassVar = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")

    def rewrite(self, match: Match) -> ir.Value | None:
        """The input, for the coordinate transformations that are exact at scale 1."""
        given = match.root.inputs[1:3]  # scales, from opset 11 on after the region
        scales = g.array(given[-1]) if given else None
        one = scales is not None and bool(scales.size) and bool((scales == 1).all())
        if not one and not (match.get("sizes") and same_dims(match, match["x"], match.root.outputs[0])):
            return None
        mode = g.attribute(match.root, "coordinate_transformation_mode", "half_pixel")
        match.require(mode in self.exact_at_one, f"{mode} may move values even at scale 1")
        return match["x"]


class PoolOfOne(Rule):
    """MaxPool and AveragePool over windows of one element, with stride 1 and no padding, return x."""

    pattern = op(("MaxPool", "AveragePool"), any_("x"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The input."""
        given = [g.attribute(match.root, name, ()) for name in ("kernel_shape", "strides")]
        pads = g.attribute(match.root, "pads", ())
        ones = given[0] and all(item == 1 for found in given for item in found)
        return match["x"] if ones and not any(pads) else None


class Idempotent(Rule):
    """f(f(x)) = f(x)."""

    pattern = op(("Relu", "Abs", "Ceil", "Floor", "Round", "Sign"), any_("y"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The inner result, whoever else uses it."""
        inner = match["y"].producer()
        return match["y"] if g.is_op(inner, match.root.op_type) else None


class NeutralElement(Rule):
    """x·1 = x/1 = x¹ = x - 0 = x, x + 0 = x for integers, x ∧ true = x ∨ false = x ⊕ false = x.

    For floats x + 0 turns -0 into 0, so only x + (-0) = x.
    """

    neutral: ClassVar[dict[str, float]] = {
        "Mul": 1,
        "Div": 1,
        "Pow": 1,
        "Sub": 0,
        "Add": 0,
        "And": True,
        "Or": False,
        "Xor": False,
    }
    one_sided: ClassVar = ("Div", "Pow", "Sub")
    pattern = op(tuple(neutral), any_("x"), any_("y"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The other operand, when the constant neither changes nor broadcasts it."""
        for kept, other in (("x", "y"), ("y", "x")):
            if kept == "y" and match.root.op_type in self.one_sided:
                break
            if self._is_neutral(match, g.constant(match[other])):
                fits = self._keeps_shape(match, match[kept], match[other])
                match.require(fits, f"'{match[other].name}' may broadcast '{match[kept].name}'")
                return match[kept]
        return None

    def _is_neutral(self, match: Match, tensor: ir.TensorProtocol | None) -> bool:
        if tensor is None or tensor.dtype == ir.DataType.STRING or not tensor.size:
            return False
        elements, op_type = tensor.numpy(), match.root.op_type
        if not (elements == self.neutral[op_type]).all():
            return False
        signed_zero = op_type in ("Add", "Sub") and tensor.dtype.is_floating_point()
        return not signed_zero or bool((np.signbit(elements) == (op_type == "Add")).all())

    @staticmethod
    def _keeps_shape(match: Match, kept: ir.Value, other: ir.Value) -> bool:
        tensor = g.constant(other)
        assert tensor is not None
        rank = match.run.shapes(match.model).rank(kept)
        if tensor.size == 1 and (len(tensor.shape) == 0 or (rank is not None and len(tensor.shape) <= rank)):
            return True
        return same_dims(match, kept, match.root.outputs[0])


class WhereAlways(Rule):
    """Where(true, x, y) = x, Where(false, x, y) = y."""

    pattern = op("Where", const("condition"), any_("x"), any_("y"))

    def rewrite(self, match: Match) -> ir.Value | None:
        """The branch that is always taken, when it is not broadcast."""
        condition = match.array("condition")
        if not condition.size or not (condition == condition.flat[0]).all():
            return None
        taken = match["x"] if condition.flat[0] else match["y"]
        fits = same_dims(match, taken, match.root.outputs[0])
        match.require(fits, f"'{taken.name}' may be broadcast")
        return taken


@dataclass(frozen=True)
class EliminateIdentity(RulePass):
    """Remove nodes that return their input."""

    name = "eliminate-identity"
    rules = (
        Identity,
        SplitIntoOne,
        DropoutInInference,
        CastToSameType,
        CastLikeKnown,
        SameShape,
        TransposeInOrder,
        PadByNothing,
        SliceOfEverything,
        ResizeToSameSize,
        PoolOfOne,
        Idempotent,
        NeutralElement,
        WhereAlways,
    )
