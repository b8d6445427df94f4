"""Let the CPU round every half value, as a GPU does when it stores it.

ONNX Runtime has no half kernels for x64: it computes in float32 and drops the conversions in between, so that
an fp16 model never rounds and never overflows there. Two Identity nodes behind a value force it to be stored
in half; one alone would be computed in float32 too. At ORT_DISABLE_ALL they stay, and results are those of
numpy's float16, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.inliner

HALF = onnx.TensorProto.FLOAT16
EXACT, STORED = "/unrounded", "/stored"
NOT_TENSORS = ("Sequence", "Optional", "SplitToSequence")
CARRYING = {"If", "Loop", "Scan", "Constant"}  # what they give was rounded inside, or is stored in half


def write_rounded(source: Path, target: Path) -> None:
    """Write the model `source` with every half value that it computes rounded; its outputs are the same."""
    model = onnx.load(source)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    round_graph(model.graph, inferred(model))
    onnx.save(model, target)


def inferred(model: onnx.ModelProto) -> dict[str, int]:
    """Element types by the names of values, where inference finds them."""
    try:
        found = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # it raises what it meets in an invalid model; then no type is known
        return {}
    values = [*found.value_info, *found.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def round_graph(graph: onnx.GraphProto, types: dict[str, int]) -> None:
    """Put two Identity nodes behind each value that is half, or may be since its type is not known."""
    nodes = [new for node in graph.node for new in (node, *stores(node, types))]
    del graph.node[:]
    graph.node.extend(nodes)


def stores(node: onnx.NodeProto, types: dict[str, int]) -> Iterator[onnx.NodeProto]:
    """The nodes to insert behind `node`, whose outputs are renamed; its subgraphs are done as well."""
    for attribute in node.attribute:
        for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
            round_graph(inner, types={})  # names inside may be those of other values outside
    if node.op_type in CARRYING or node.op_type.startswith(NOT_TENSORS) or node.domain == "ai.onnx.ml":
        return
    for index, name in enumerate(node.output):
        if name and types.get(name, HALF) == HALF:
            node.output[index] = name + EXACT
            yield onnx.helper.make_node("Identity", [name + EXACT], [name + STORED])
            yield onnx.helper.make_node("Identity", [name + STORED], [name])
