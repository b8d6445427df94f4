"""store-half: keep weights in half precision, and widen them when the model is loaded.

    w  →  Cast(half(w), to float32)

ONNX Runtime folds the Cast of a constant when it makes a session, so that the model runs on float32 as
before, from a file of half the size; the only error is that of rounding the weights once. A weight stays as
it is where that error would be larger than half precision promises: where a number leaves the range, or
where digits below the least normal number (2⁻¹⁴ in float16) are lost. Beside larger numbers, with which they
are summed up, these digits do not count; but they do where an operator divides by each number, or takes its
root or logarithm. Whole numbers, such as a table of lengths kept as floats, are rounded nowhere. So does one
stay that is too small to save what its Cast takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.errors import UsageError
from graphopt.footprint import header_bytes
from graphopt.legacy import as_ir4
from graphopt.pipeline import Pass, Run
from graphopt.report import LayerReport
from graphopt.storage.weights import slices
from graphopt_passes.exact.fold_constants import WIDENED
from graphopt_passes.exact.raise_opset import raised
from graphopt_passes.weights.constants import OVERRIDABLE, Front, Weight, overridable, replace, weights

if TYPE_CHECKING:
    from graphopt.model import Model

Array = np.ndarray[Any, Any]

RULE = "store-half"
_BLOCK = 1 << 20  # elements that are rounded at once
_NODE = 30  # bytes of a Cast without the names that it reads and gives
# To these operators, and as the scale of integers, the size of each number matters, however small.
_ONE_BY_ONE = ("BatchNormalization", "Div", "Log", "Pow", "Reciprocal", "Sqrt")
_SCALED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "QGemm", "MatMulNBits", "GatherBlockQuantized")


@dataclass(frozen=True)
class Half:
    """A type of half precision.

    Attributes:
        dtype: of ONNX.
        numpy: of arrays.
        unit: the largest relative error of rounding to nearest.
        opset: the first whose Cast knows the type, and that graphopt can raise others to.
    """

    dtype: ir.DataType
    numpy: Any
    unit: float
    opset: int


HALVES = {
    "fp16": Half(ir.DataType.FLOAT16, np.float16, 2.0**-11, 6),
    "bf16": Half(ir.DataType.BFLOAT16, ml_dtypes.bfloat16, 2.0**-8, 13),
}


@dataclass(frozen=True)
class StoreHalf(Pass):
    """Store weights in half precision, widened when the model is loaded (lossy).

    Attributes:
        type: ``fp16`` or ``bf16``.

    Raises:
        UsageError: there is no such type.
    """

    name: ClassVar[str] = RULE
    exact: ClassVar[bool] = False
    type: str = "fp16"

    def __post_init__(self) -> None:
        if self.type not in HALVES:
            known = " and ".join(HALVES)
            raise UsageError(f"pass '{RULE}' has no type '{self.type}'; its types are {known}")

    def apply(self, model: Model, run: Run) -> bool:
        """Store what can be; refusals go to the journal."""
        revision = run.journal.revision
        store(model, run, HALVES[self.type])
        return run.journal.revision > revision


def store(model: Model, run: Run, half: Half) -> list[LayerReport]:
    """Store the weights of a model in place, those of subgraphs and functions too.

    Args:
        model: of an opset that is raised if its Cast does not know the type.
        run: admits each weight, and takes refusals.
        half: how to store them.

    Returns:
        One report for each weight that is worth it, whether it could be stored or why not.
    """
    reason = _opset(model, run, half)
    if reason is not None:
        run.journal.refuse(RULE, "the model", reason)
        return []
    with as_ir4(model, run.journal):
        found = [_store(weight, model, run, half) for weight in list(weights(model))]
        found += [_kept(weight, OVERRIDABLE, run) for weight in overridable(model) if _is_worth_it(weight)]
    return [report for report in found if report is not None]


def _opset(model: Model, run: Run, half: Half) -> str | None:
    """Why the model's Cast cannot know the type; models below it are raised where that is possible."""
    functions = [function.graph for function in model.ir.functions.values()]
    least = min(g.opset(model.ir, graph) for graph in (model.ir.graph, *functions))
    if least >= half.opset:
        return None
    reason = raised(model, run, max(half.opset, 13))
    return None if reason is None else f"it needs opset {half.opset}, and {reason}"


def _store(weight: Weight, model: Model, run: Run, half: Half) -> LayerReport | None:
    """Store one weight; ``None`` if it is too small to be spoken of."""
    if not _is_worth_it(weight):
        return None
    if any(run.keeps(node) for node in weight.readers):
        return _kept(weight, "it is to be kept (--keep)", run)
    rounded = np.empty(weight.tensor.shape.numpy(), half.numpy)
    for part, numbers in slices(weight.tensor, _BLOCK):
        with np.errstate(over="ignore"):
            rounded[part] = numbers.astype(half.numpy)
    one_by_one = any(node.op_type.startswith((*_ONE_BY_ONE, *_SCALED)) for node in weight.readers)
    reason = why_not(weight.tensor, rounded, half, one_by_one)
    if reason is not None:
        return _kept(weight, reason, run)
    if not run.journal.admit(RULE, weight.name):
        return None
    before, suffix = weight.tensor.nbytes, half.dtype.name.lower()
    report = LayerReport(weight.name, _reader(weight), suffix, bytes_before=before, bytes_after=before // 2)
    front = Front.of(weight, model, run)
    narrow = front.constant(ir.Tensor(rounded, half.dtype), f"{weight.name}_{suffix}")
    replace(weight, front.node("Cast", narrow, to=int(ir.DataType.FLOAT)), model, run)
    return report


def _is_worth_it(weight: Weight) -> bool:
    """Whether folding constants does not widen it again, and its Cast takes less than it saves."""
    return weight.tensor.nbytes > WIDENED and _saved(weight) > 0


def _saved(weight: Weight) -> int:
    """Bytes that storing a weight saves; less than 0 if its Cast takes more."""
    name = len(weight.name.encode())
    shape = weight.tensor.shape.numpy()
    if not shape:
        return -_NODE
    return weight.tensor.nbytes // 2 - _NODE - header_bytes(weight.name, len(shape)) - 2 * name


def why_not(tensor: ir.TensorProtocol, rounded: Array, half: Half, one_by_one: bool = False) -> str | None:
    """Why rounding a weight loses more than half precision promises; ``None`` if it does not.

    Args:
        tensor: float32, of rank 1 or more.
        rounded: of the same shape.
        half: the type that it is rounded to.
        one_by_one: whether each number must keep its digits; else they are summed up.
    """
    losses = [_Loss.of(numbers, rounded[part], half.unit) for part, numbers in slices(tensor, _BLOCK)]
    beyond, vanishing = sum(one.beyond for one in losses), sum(one.vanishing for one in losses)
    if beyond:
        return f"{beyond:,} of {tensor.size:,} numbers are beyond the range of {half.dtype.name.lower()}"
    changed = sum(one.changed for one in losses)
    if changed and all(one.whole for one in losses):
        return f"it holds whole numbers, of which {changed:,} of {tensor.size:,} would become others"
    if one_by_one and vanishing:
        return f"{vanishing:,} of {tensor.size:,} numbers would lose digits or vanish"
    error, largest = max(one.error for one in losses), max(one.largest for one in losses)
    return "its numbers are too small for half precision" if error > half.unit * largest else None


@dataclass(frozen=True)
class _Loss:
    """What rounding does to some numbers.

    Attributes:
        beyond: how many leave the range.
        vanishing: how many lose more than rounding to nearest does among normal numbers.
        changed: how many become another number.
        whole: whether all are whole numbers, as tables of indices or of lengths are.
        error, largest: the largest error and the largest number, both absolute.
    """

    beyond: int
    vanishing: int
    changed: int
    whole: bool
    error: float
    largest: float

    @classmethod
    def of(cls, numbers: Array, rounded: Array, unit: float) -> _Loss:
        """Of float32 numbers and what they become; infinity and NaN stay what they are."""
        finite = np.isfinite(numbers)
        exact = np.abs(np.where(finite, numbers, 0))
        error = np.abs(np.where(finite, rounded.astype(np.float32), 0) - np.where(finite, numbers, 0))
        beyond = int((finite & ~np.isfinite(rounded)).sum())
        vanishing = int((error > unit * exact).sum())
        changed, whole = int((error > 0).sum()), bool((np.rint(exact) == exact).all())
        return cls(
            beyond, vanishing, changed, whole, float(error.max(initial=0.0)), float(exact.max(initial=0.0))
        )


def _kept(weight: Weight, reason: str, run: Run) -> LayerReport:
    run.journal.refuse(RULE, f"'{weight.name}'", reason)
    size = weight.tensor.nbytes
    return LayerReport(
        weight.name, _reader(weight), "float32", bytes_before=size, bytes_after=size, reason=reason
    )


def _reader(weight: Weight) -> str:
    return weight.readers[0].op_type
