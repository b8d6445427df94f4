"""Which channels of a model can be removed: a rule per operator, walked over all nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.rewrite import RefusedError
from graphopt.shapes.inference import Shapes
from graphopt_passes.axes.gather import gather
from graphopt_passes.axes.groups import Analysis
from graphopt_passes.axes.rules import RULES
from graphopt_passes.axes.site import Site
from graphopt_passes.axes.space import Space, freeze, side


def groups(model: Model, keep: Collection[str] = ()) -> Analysis:
    """The channels that can be removed from a model, and those that cannot, with reasons.

    Subgraphs of If, Loop and Scan are walked like the main graph; bodies of functions are not, and what calls
    them is left alone.

    Args:
        model: IR version 4 or later, see :func:`graphopt.legacy.to_ir4`; only read.
        keep: operator types and node names to be left alone.
    """
    space = Space(Shapes.infer(model))
    for node in _nodes(model.ir):
        _visit(node, space, keep)
    _freeze_interface(model.ir, space)
    space.choose()
    return gather(space)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    functions = g.function_graphs(model)
    for graph in g.graphs(model):
        if graph not in functions:
            yield from graph


def _visit(node: ir.Node, space: Space, keep: Collection[str]) -> None:
    if g.is_op(node, "Constant"):
        return
    space.note_fixed(node)
    site = Site.of(node, space)
    if node.op_type in keep or node.name in keep:
        return site.freeze_all("to be kept (--keep)")
    is_call = node.op_identifier() in space.shapes.model.functions
    rule = None if is_call or node.domain not in g.DEFAULT_DOMAINS else RULES.get(node.op_type)
    if rule is None:
        return site.freeze_all("calls a function" if is_call else "no rule for this operator")
    try:
        rule(site)
    except RefusedError as refused:
        site.freeze_all(str(refused))
    except (KeyError, IndexError, TypeError, ValueError):
        site.freeze_all("its attributes or operands are not all known")


def _freeze_interface(model: ir.Model, space: Space) -> None:
    for value in model.graph.inputs:
        weight = "a weight that callers may override (freeze-initializers makes it constant)"
        what = weight if value.is_initializer() else "a graph input"
        freeze(side(space, value), f"'{value.name}' is {what}")
    for value in model.graph.outputs:
        freeze(side(space, value), f"'{value.name}' is a graph output")
