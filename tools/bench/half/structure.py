"""What a converted model is, without running it: valid or not, its Casts, and its share of half precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt import graph as g
from graphopt.cost import macs_of
from graphopt.inspection import fix_dims
from graphopt.journal import Journal
from graphopt.legacy import as_ir4
from graphopt.model import Model
from graphopt.shapes.inference import Shapes
from tools.bench.judge import operators

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def invalid(path: Path) -> str:
    """What onnx's checker says with full, strict shape inference; empty if it finds nothing wrong."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # it raises ValidationError, InferenceError and others
        return " ".join(str(error).split())[:200]
    return ""


def casts(path: Path) -> int:
    """Number of Cast nodes, those of subgraphs and functions included."""
    return operators(onnx.load(path, load_external_data=False))["Cast"]


def half_share(path: Path, dims: Mapping[str, Sequence[int]]) -> float | None:
    """Percentage of the multiply-accumulates that read half precision; None if there are none, or no types.

    Nodes whose shapes are not known, as in some branches and loops, count as the mean of the others.
    """
    try:
        found = costs(path, dims)
    except Exception:  # what is no valid model may fail in any way
        return None
    known = [macs for macs, _ in found if macs]
    mean = sum(known) / len(known) if known else 1
    weights = [(mean if macs is None else macs, half) for macs, half in found]
    total = sum(macs for macs, _ in weights)
    return 100 * sum(macs for macs, half in weights if half) / total if total else None


def costs(path: Path, dims: Mapping[str, Sequence[int]]) -> list[tuple[int | None, bool]]:
    """Multiply-accumulates of each node, if they are known, and whether it reads half precision."""
    model = Model.load(path)
    fix_dims(model.ir, {name: tuple(shape) for name, shape in dims.items()})
    with as_ir4(model, Journal()):
        shapes = Shapes.infer(model)
        return [(macs_of(node, shapes), reads_half(node, shapes)) for node in g.nodes(model.ir)]


def reads_half(node: ir.Node, shapes: Shapes) -> bool:
    """Whether the first input of a node is half precision."""
    return bool(node.inputs) and shapes.dtype(node.inputs[0]) in HALF
