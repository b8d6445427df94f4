"""A copy of an onnx-ir model that shares its tensors and nothing else.

onnx-ir's own clone shares type objects, so that a dtype set on the copy changes the original, and refuses
graphs whose nodes are not sorted.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def clone_model(model: ir.Model) -> ir.Model:
    """Copy a model; its tensors are shared, its types, shapes, metadata and attributes are not."""
    clone = ir.Model(
        _Cloner().graph(model.graph),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        functions=[_function(function) for function in model.functions.values()],
        metadata_props=dict(model.metadata_props),
        device_configurations=model.device_configurations,
    )
    clone.meta.update(model.meta)
    return clone


def _function(function: ir.Function) -> ir.Function:
    cloner = _Cloner()
    graph = cloner.graph(function.graph)
    attributes = [cloner.attribute(attribute) for attribute in function.attributes.values()]
    clone = ir.Function(function.domain, function.name, function.overload, graph=graph, attributes=attributes)
    return clone


class _Cloner:
    def __init__(self) -> None:
        self._values: dict[ir.Value, ir.Value] = {}

    def graph(self, graph: ir.Graph) -> ir.Graph:
        inputs = [self._declare(value) for value in graph.inputs]
        initializers = [self._declare(value) for value in graph.initializers.values()]
        for node in graph:
            for value in node.outputs:
                self._declare(value)
        clone = ir.Graph(
            inputs,
            [self._declare(value) for value in graph.outputs],
            nodes=[self._node(node) for node in graph],
            initializers=initializers,
            doc_string=graph.doc_string,
            opset_imports=dict(graph.opset_imports),
            name=graph.name,
            metadata_props=dict(graph.metadata_props),
        )
        clone.meta.update(graph.meta)
        return clone

    def _declare(self, value: ir.Value) -> ir.Value:
        if value in self._values:
            return self._values[value]
        clone = ir.Value(
            name=value.name,
            type=copy.copy(value.type)
            if isinstance(value.type, ir.TensorType)
            else copy.deepcopy(value.type),
            shape=value.shape.copy(frozen=value.shape.frozen) if value.shape is not None else None,
            doc_string=value.doc_string,
            const_value=value.const_value,
        )
        if value.metadata_props:
            clone.metadata_props.update(value.metadata_props)
        if value.meta:
            clone.meta.update(value.meta)
        self._values[value] = clone
        return clone

    def _node(self, node: ir.Node) -> ir.Node:
        clone = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self._values.get(value, value) for value in node.inputs],
            [self.attribute(attribute) for attribute in node.attributes.values()],
            overload=node.overload,
            outputs=[self._values[value] for value in node.outputs],
            version=node.version,
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props) if node.metadata_props else None,
            device_configurations=self._device_configurations(node.device_configurations),
        )
        if node.meta:
            clone.meta.update(node.meta)
        return clone

    def attribute(self, attribute: ir.Attr) -> ir.Attr:
        if attribute.is_ref() or attribute.type not in _GRAPHS:
            return attribute
        graphs: Any
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = self.graph(attribute.as_graph())
        else:
            graphs = tuple(self.graph(graph) for graph in attribute.as_graphs())
        return ir.Attr(attribute.name, attribute.type, graphs, doc_string=attribute.doc_string)

    def _device_configurations(self, configurations: Iterable[Any]) -> tuple[Any, ...]:
        """The same configurations, their shardings about the cloned values."""
        return tuple(
            dataclasses.replace(
                configuration,
                sharding_specs=tuple(
                    dataclasses.replace(spec, value=self._values.get(spec.value, spec.value))
                    for spec in configuration.sharding_specs
                ),
            )
            for configuration in configurations
        )
