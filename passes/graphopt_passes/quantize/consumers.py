"""How layers read their input: along which axis, with which weight on each channel, in which rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.runtime.moments import Moments, Patches


@dataclass(frozen=True)
class Reading:
    """How a layer with a constant weight reads its first input.

    Attributes:
        axis: of the input that the layer sums over: its channels.
        energy: Σw² of the weights on each channel, float64 [channels]. An error Δx that is independent from
            channel to channel changes the output by E‖Δy‖² = Σ energyₖ·E(Δxₖ²).
    """

    axis: int
    energy: NDArray[np.float64]

    @classmethod
    def of(cls, node: ir.Node, index: int) -> Reading | None:
        """How a node reads an input; ``None`` unless that is the first of a Conv, Gemm or MatMul."""
        weight = g.constant(node.inputs[1]) if index == 0 and g.is_op(node, *_ENERGIES) else None
        if weight is None or len(weight.shape) < 2:
            return None
        return _ENERGIES[node.op_type](node, weight.numpy())


def readings(value: ir.Value) -> list[Reading]:
    """How all layers read a value."""
    found = (Reading.of(use.node, use.idx) for use in value.uses())
    return [reading for reading in found if reading is not None]


def moments_of(node: ir.Node, arrays: int = 1) -> Moments | None:
    """The second moments of a layer's rows, to be asked of its first input; ``None`` if it is no such layer.

    So many rows of each of so many arrays are used that there are :data:`ROWS_PER_COLUMN` for each column.

    Columns are in the order of the weight: K of a MatMul or Gemm, C/groups·kH·kW of a Conv.
    """
    weight = g.constant(node.inputs[1]) if g.is_op(node, *_ENERGIES) else None
    if weight is None or len(weight.shape) < 2:
        return None
    shape = tuple(weight.shape.numpy())
    if node.op_type == "Conv":
        columns = math.prod(shape[1:])
        return Moments(columns, patches=_patches(node, shape[2:]), rows=_rows(columns, arrays))
    if node.op_type == "MatMul":
        return Moments(shape[-2], rows=_rows(shape[-2], arrays))
    trans_a, trans_b = (g.attribute(node, name, 0) for name in ("transA", "transB"))
    columns = shape[1] if trans_b else shape[0]
    return Moments(columns, axis=0 if trans_a else -1, rows=_rows(columns, arrays))


def _rows(columns: int, arrays: int) -> int:
    return max(LEAST_ROWS, -(-ROWS_PER_COLUMN * columns // arrays))


def _patches(node: ir.Node, kernel: tuple[int, ...]) -> Patches:
    rank = len(kernel)
    ones, mode = (1,) * rank, g.attribute(node, "auto_pad", "NOTSET")
    pads = mode if mode.startswith("SAME") else (0,) * 2 * rank
    if mode == "NOTSET":
        pads = tuple(g.attribute(node, "pads", pads))
    strides, dilations = (tuple(g.attribute(node, name, ones)) for name in ("strides", "dilations"))
    return Patches(kernel, strides, dilations, pads, g.attribute(node, "group", 1))


def _conv(node: ir.Node, w: NDArray[np.floating]) -> Reading:
    """Channel k of group i meets the output channels of that group."""
    groups = g.attribute(node, "group", 1)
    by_group = w.reshape(groups, w.shape[0] // groups, w.shape[1], math.prod(w.shape[2:]))
    return Reading(1, np.einsum("gmck,gmck->gc", by_group, by_group, dtype=np.float64).reshape(-1))


def _gemm(node: ir.Node, w: NDArray[np.floating]) -> Reading:
    terms = "nk,nk->k" if g.attribute(node, "transB", 0) else "kn,kn->k"
    axis = 0 if g.attribute(node, "transA", 0) else -1
    return Reading(axis, np.einsum(terms, w, w, dtype=np.float64))


def _matmul(node: ir.Node, w: NDArray[np.floating]) -> Reading:
    stack = w.reshape(math.prod(w.shape[:-2]), *w.shape[-2:])
    return Reading(-1, np.einsum("bkn,bkn->k", stack, stack, dtype=np.float64))


# Neighbouring positions of an image are much alike: more rows take time and change little.
ROWS_PER_COLUMN = 8
LEAST_ROWS = 64
_ENERGIES = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}
