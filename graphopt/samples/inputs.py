"""The inputs of a model, and whether a sample fits them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.runtime.values import FLOATING, STRING, Computed, Tensor, Value, dtype_of

Dim = int | str | None
Kind = Literal["tensor", "sequence", "optional", "other"]


@dataclass(frozen=True)
class InputSpec:
    """One graph input.

    Attributes:
        name: the input's name.
        kind: what it takes; the element type and shape are those of the tensors inside.
        elem_type: ONNX element type, 0 if it holds no tensors or tensors of an unknown type.
        shape: a number, a name or None (unknown) per axis, or None if the rank is unknown.
        default: the initializer that is used when the input is not fed.
    """

    name: str
    kind: Kind
    elem_type: int
    shape: tuple[Dim, ...] | None
    default: ir.TensorProtocol | None = None

    @classmethod
    def of(cls, value: ir.Value) -> InputSpec:
        """The specification of a graph input."""
        kind, inner = _kind(value.type)
        elem_type = int(inner.dtype) if isinstance(inner, ir.TensorType) else 0
        shape = None if value.shape is None else tuple(_dim(dim) for dim in value.shape)
        return cls(value.name or "", kind, elem_type, shape, value.const_value)


def inputs_of(model: ir.Model) -> tuple[InputSpec, ...]:
    """Every input that a caller can feed; in IR 3 the listed initializers are none."""
    specs = (InputSpec.of(value) for value in model.graph.inputs)
    return tuple(spec for spec in specs if spec.default is None or (model.ir_version or 0) >= 4)


def check(specs: Sequence[InputSpec], sample: Mapping[str, Any], where: str) -> dict[str, Value]:
    """The user's sample as values for the worker.

    Raises:
        DataError: an input is missing, unknown, of another type or shape, or holds NaN or Inf.
    """
    known = {spec.name for spec in specs}
    if unknown := sorted(map(str, set(sample) - known)):
        raise DataError(f"{where}: the model has no input {unknown[0]!r}; it has {quoted(known)}")
    values: dict[str, Value] = {}
    dims: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name in sample:
            values[spec.name] = _checked(spec, sample[spec.name], dims, f"{where}: input {spec.name!r}")
        elif spec.default is None:
            raise DataError(f"{where}: input {spec.name!r} is missing")
    return values


def _checked(spec: InputSpec, value: Any, dims: dict[str, tuple[int, str]], where: str) -> Value:
    if spec.kind == "tensor":
        return _tensor(spec, value, dims, where)
    if spec.kind == "sequence":
        return [_tensor(spec, item, {}, where) for item in value]
    if spec.kind == "optional" and spec.elem_type and value is not None:
        return _tensor(spec, value, {}, where)
    plain: Value = value
    return plain


def _tensor(spec: InputSpec, value: Any, dims: dict[str, tuple[int, str]], where: str) -> Tensor:
    try:
        tensor = value if isinstance(value, Tensor) else Tensor.of(value)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{where} is no array of numbers or strings ({error})") from None
    if tensor.elem_type != spec.elem_type:
        have, need = _type_name(tensor.elem_type), _type_name(spec.elem_type)
        raise DataError(f"{where} has type {have}, the model takes {need}")
    _check_shape(spec, tensor.shape, dims, where)
    trusted = isinstance(tensor, Computed)
    if not trusted and tensor.elem_type in FLOATING and not np.isfinite(tensor.numpy()).all():
        raise DataError(f"{where} holds NaN or Inf")
    return tensor


def _check_shape(
    spec: InputSpec, shape: tuple[int, ...], dims: dict[str, tuple[int, str]], where: str
) -> None:
    if spec.shape is None:
        return
    fits = len(shape) == len(spec.shape)
    fits = fits and all(not isinstance(b, int) or a == b for a, b in zip(shape, spec.shape, strict=True))
    if not fits:
        raise DataError(f"{where} has shape {spell(shape)}, the model takes {spell(spec.shape)}")
    for size, dim in zip(shape, spec.shape, strict=True):
        if isinstance(dim, str) and dims.setdefault(dim, (size, spec.name))[0] != size:
            other, name = dims[dim]
            raise DataError(f"{where} has {size} for {dim!r}, but input {name!r} has {other}")


def _kind(kind: ir.TypeProtocol | None) -> tuple[Kind, ir.TypeProtocol | None]:
    if isinstance(kind, ir.SequenceType) and isinstance(kind.elem_type, ir.TensorType):
        return "sequence", kind.elem_type
    if isinstance(kind, ir.OptionalType):
        return "optional", kind.elem_type
    return ("tensor", kind) if isinstance(kind, ir.TensorType) else ("other", None)


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    """The dim; exporters write -1 and '?' for a dim of its own, which shares no size with the others."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return None if dim.value in {None, "", "?"} else str(dim.value)


def quoted(names: Iterable[str]) -> str:
    """Names for a message, in order."""
    return ", ".join(map(repr, sorted(names)))


def spell(shape: Sequence[Dim]) -> str:
    """A shape as ``--shape`` takes it, such as ``batchx3x224x224``; a scalar's is ``scalar``."""
    return "x".join("?" if dim is None else str(dim) for dim in shape) or "scalar"


def _type_name(elem_type: int) -> str:
    return "string" if elem_type == STRING else dtype_of(elem_type).name
