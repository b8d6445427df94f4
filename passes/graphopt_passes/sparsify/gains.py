"""What zeros buy on a target, in one line: users expect speed, and most runtimes give none."""

from __future__ import annotations

import zlib

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pruning import Amount
from graphopt.storage.weights import chunks


def gain(before: int, after: int, target: str, amount: Amount) -> str:
    """The size of the compressed weights, and speed: which option buys what this does not.

    Args:
        before, after: bytes as of :func:`compressed`.
        target: of the run.
        amount: that was asked for.
    """
    told = f"compressed by gzip, the weights take {after:,} bytes instead of {before:,}"
    if target == "tensorrt" and (amount.kept, amount.group) == (2, 4):
        return f"{told}; TensorRT computes 2:4 faster where trt_sparsity_enable is set"
    return f"{told}; zeros make no model faster in ONNX Runtime, --channels does"


def compressed(model: Model) -> int:
    """The bytes of all weights when they are compressed as gzip does it, at level 6."""
    packer, total = zlib.compressobj(6), 0
    for graph in g.graphs(model.ir):
        made = (g.constant_node_tensor(node) for node in graph if g.is_op(node, "Constant"))
        stored = (value.const_value for value in graph.initializers.values())
        for tensor in (*stored, *made):
            for piece in chunks(tensor) if tensor is not None else ():
                total += len(packer.compress(piece))
    return total + len(packer.flush())
