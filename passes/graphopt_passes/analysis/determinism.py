"""Which nodes always make the same outputs from the same inputs, so that they may be folded or shared."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import onnx
import onnx_ir as ir

from graphopt import graph as g

# Schemas call the first four non-deterministic for what may stand inside them, AffineGrid by mistake.
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_DETERMINISTIC = frozenset({"AffineGrid", "DepthToSpace", "SpaceToDepth"})
_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
# Contrib operators have no schema here; these are pure functions of their inputs.
_MICROSOFT = frozenset(
    {
        "BiasGelu",
        "FastGelu",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gelu",
        "LayerNormalization",
        "MatMulNBits",
        "QuickGelu",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)

Functions = Mapping[ir.OperatorIdentifier, ir.Function]


def is_deterministic(node: ir.Node, imports: Mapping[str, int], functions: Functions) -> bool:
    """Whether equal inputs give equal outputs on every run; an operator that nobody knows might not.

    Args:
        node: the node; the nodes of its subgraphs and of the function that it calls count, too.
        imports: the opset versions in force where the node stands.
        functions: the model's functions.
    """
    function = functions.get(node.op_identifier())
    if function is not None:
        return all(
            is_deterministic(inner, function.opset_imports, functions) for inner in function.all_nodes()
        )
    if g.is_op(node, "Dropout"):
        return not drops(node, imports.get("", 1))
    if g.has_subgraph(node):
        inner_nodes = (inner for graph in g.subgraphs(node) for inner in graph.all_nodes())
        return all(is_deterministic(inner, imports, functions) for inner in inner_nodes)
    return is_deterministic_op(node.domain, node.op_type, imports.get(node.domain, 1))


@cache
def is_deterministic_op(domain: str, op_type: str, version: int) -> bool:
    """The same for an operator by itself, as its schema and the lists above say."""
    if domain == "com.microsoft":
        return op_type in _MICROSOFT
    if domain in g.DEFAULT_DOMAINS and op_type in _RANDOM:
        return False
    if domain in g.DEFAULT_DOMAINS and op_type in _DETERMINISTIC | _CONTROL_FLOW:
        return True
    try:
        schema = onnx.defs.get_schema(op_type, version, "" if domain in g.DEFAULT_DOMAINS else domain)
    except onnx.defs.SchemaError:
        return False
    said = schema.node_determinism  # type: ignore[attr-defined]  # missing in the stubs
    return bool(said == onnx.defs.OpSchema.NodeDeterminism.Deterministic)


def drops(dropout: ir.Node, version: int) -> bool:
    """Whether a Dropout may drop anything: an attribute says so until opset 6, an input from opset 12 on."""
    if version < 7:
        return not g.attribute(dropout, "is_test", 0)
    mode = dropout.inputs[2] if len(dropout.inputs) > 2 else None
    if mode is None:
        return False
    known = g.array(mode, limit=1)
    return known is None or bool(known.any())
