"""Shrinks a failing model by delta debugging: drop what can go while it still fails alike.

A. Zeller and R. Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE TSE 28 (2002). The
changes are few and small here, so each is tried alone, again and again until none is left that helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, shape_inference

Fails = Callable[[ModelProto], bool]


def reduced(model: ModelProto, fails: Fails) -> ModelProto:
    """A smallest model that ``fails``: leaving out any one output or node makes it succeed."""
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(model):
            if is_valid(smaller) and fails(smaller):
                model, progress = smaller, True
                break
    return model


def is_valid(model: ModelProto) -> bool:
    """Whether the checker accepts it."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True


def _smaller(model: ModelProto) -> Iterator[ModelProto]:
    """Each smaller model, the smallest first."""
    count = len(model.graph.output)
    for kept in range(count if count > 1 else 0):
        yield _edited(model, lambda graph, i=kept: _keep_output(graph, i))
    for dropped in range(count if count > 2 else 0):
        yield _edited(model, lambda graph, i=dropped: graph.output.pop(i) and None)
    places = [(g, n) for g, graph in enumerate(graphs(model)) for n in range(len(graph.node))]
    types = _types(model)
    for g, n in reversed(places):
        node = graphs(model)[g].node[n]
        for source in dict.fromkeys(node.input) if node.output else ():
            yield _edited(model, lambda graph, n=n, s=source: _bypass(graph, n, s), g)
        if g == 0 and all(name in types for name in node.output):
            yield _edited(model, lambda graph, n=n: _to_inputs(graph, n, types))


def _edited(model: ModelProto, edit: Callable[[GraphProto], None], index: int = 0) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    edit(graphs(copy)[index])
    clean(copy)
    return copy


def _keep_output(graph: GraphProto, index: int) -> None:
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(graph.output[index])
    del graph.output[:]
    graph.output.append(kept)


def _bypass(graph: GraphProto, index: int, source: str) -> None:
    """Let the consumers of a node read one of its inputs."""
    node = graph.node.pop(index)
    for name in node.output:
        rename(graph, name, source)


def _to_inputs(graph: GraphProto, index: int, types: dict[str, onnx.ValueInfoProto]) -> None:
    """Make the outputs of a node inputs of the model."""
    node = graph.node.pop(index)
    graph.input.extend(types[name] for name in node.output if name)


def _types(model: ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Values of which dtype and rank are known; none where bypasses have made the declared shapes wrong."""
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    except shape_inference.InferenceError:
        return {}
    found = [*inferred.value_info, *inferred.output]
    return {info.name: info for info in found if info.type.tensor_type.HasField("shape")}


def graphs(model: ModelProto) -> list[GraphProto]:
    """The main graph and all subgraphs outside of functions."""
    found = [model.graph]
    for graph in found:
        for node in graph.node:
            found.extend(a.g for a in node.attribute if a.type == AttributeProto.GRAPH)
    return found


def rename(graph: GraphProto, old: str, new: str) -> None:
    """Let all readers of one value, in subgraphs too, read another."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                rename(attribute.g, old, new)
    for output in graph.output:
        if output.name == old:
            output.name = new


def clean(model: ModelProto) -> None:
    """Drop nodes, weights, inputs and functions that nothing reads."""
    for graph in reversed(graphs(model)):
        del graph.value_info[:]
        while _drop_dead(graph):
            pass
    _keep(model.graph.initializer, used(model.graph))
    _keep(model.graph.input, used(model.graph))
    called = {node.op_type for graph in graphs(model) for node in graph.node}
    called |= {node.op_type for function in model.functions for node in function.node}
    _keep(model.functions, called)


def used(graph: GraphProto) -> set[str]:
    """The names that a graph reads, in subgraphs too."""
    found = {output.name for output in graph.output}
    for node in graph.node:
        found.update(node.input)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found |= used(attribute.g)
    return found


def _drop_dead(graph: GraphProto) -> bool:
    live = used(graph)
    dead = [node for node in graph.node if not live & set(node.output)]
    for node in dead:
        graph.node.remove(node)
    return bool(dead)


def _keep(entries: Any, names: set[str]) -> None:
    for entry in [entry for entry in entries if entry.name not in names]:
        entries.remove(entry)
