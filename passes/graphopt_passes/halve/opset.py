"""The opset from which operators may be bfloat16: Conv, pooling and others are only since 22."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Run
from graphopt_passes.exact.raise_opset import raised
from graphopt_passes.halve.signatures import signature

if TYPE_CHECKING:
    from graphopt.model import Model


def raise_for(model: Model, run: Run, half: str) -> None:
    """Raise the opset in place if operators of the model may be bfloat16 only then, as far as it can be.

    float16 is as old as ONNX; few operators gain it, and none that takes long, so nothing is raised for it.
    """
    if half != "bfloat16":
        return
    for version in sorted(set(_gains(model.ir, half)), reverse=True):
        if raised(model, run, version) is None:
            return


def _gains(model: ir.Model, half: str) -> Iterator[int]:
    """The opsets above the model's at which an operator of it may be half for the first time."""
    newest = onnx.defs.onnx_opset_version()
    for node in g.nodes(model):
        if node.domain not in g.DEFAULT_DOMAINS:
            continue
        assert isinstance(node.graph, ir.Graph)
        now = g.opset(model, node.graph)
        if _may_be(node.op_type, now, half):
            continue
        yield from [v for v in range(now + 1, newest + 1) if _may_be(node.op_type, v, half)][:1]


def _may_be(op_type: str, version: int, half: str) -> bool:
    found = signature(op_type, version, "")
    return found is not None and any(
        f"tensor({half})" in port.types for port in (*found.inputs, *found.outputs)
    )
