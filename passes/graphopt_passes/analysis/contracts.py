"""What operators demand of the ranks of their inputs; ONNX Runtime fails at run time when it is not met.

Concat is missing on purpose: ONNX Runtime lets empty tensors of any rank pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from graphopt import graph as g
from graphopt.shapes.rules import At

_RECURRENT = {0: 3, 1: 3, 2: 3, 3: 2, 4: 1, 5: 3}
RANKS: dict[str, dict[int, int]] = {
    "LSTM": {**_RECURRENT, 6: 3, 7: 2},
    "GRU": _RECURRENT,
    "RNN": _RECURRENT,
    "Gemm": {0: 2, 1: 2},
}
"""Operator → input → its rank."""


def violation(at: At) -> str | None:
    """Why a node fails whenever it runs, or ``None`` when it may succeed."""
    if not g.is_op(at.node, *RANKS, *_CHECKS):
        return None
    return next(_wrong_ranks(at), None) if at.node.op_type in RANKS else _checked(at)


def _wrong_ranks(at: At) -> Iterator[str]:
    for index, rank in RANKS[at.node.op_type].items():
        dims = at.get(index).dims
        if at.has(index) and dims is not None and len(dims) != rank:
            yield f"input {index} would have rank {len(dims)} instead of {rank}"


def _checked(at: At) -> str | None:
    try:
        return _CHECKS[at.node.op_type](at)
    except KeyError:  # a rank is not known
        return None


def _convolution(at: At) -> str | None:
    x, weight = at.rank(0), at.rank(1)
    return None if x == weight else f"an input of rank {x} would meet weights of rank {weight}"


def _transpose(at: At) -> str | None:
    perm, rank = at.attr("perm"), at.rank()
    return None if perm is None or len(perm) == rank else f"perm {list(perm)} would meet rank {rank}"


def _gather(at: At) -> str | None:
    axis, rank = at.attr("axis", 0), at.rank()
    return None if -rank <= axis < rank else f"axis {axis} would meet rank {rank}"


def _squeeze(at: At) -> str | None:
    dims = at.dims()
    for axis in at.ints(1, "axes") or []:
        if not -len(dims) <= axis < len(dims):
            return f"axis {axis} would meet rank {len(dims)}"
        if isinstance(dims[axis], int) and dims[axis] != 1:
            return f"axis {axis} would hold {dims[axis]} elements instead of 1"
    return None


_CHECKS: dict[str, Callable[[At], str | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Transpose": _transpose,
    "Gather": _gather,
    "Squeeze": _squeeze,
}
