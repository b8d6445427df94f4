"""What a scheme means, computed node by node without any QuantizeLinear: fake quantization in numpy.

Each float node runs alone in ONNX Runtime; between them, numbers are rounded to their grids by numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt import graph as g
from graphopt_passes.quantize.placement import Part, Placement
from graphopt_passes.quantize.scheme import Grid, Scheme
from graphopt_passes.quantize.weights import raise_scales, rounded
from tests.support import compute

Values = dict[str, Any]


@dataclass
class Simulation:
    """Runs a float model as a scheme would have it."""

    proto: onnx.ModelProto
    placement: Placement
    scheme: Scheme
    bits: int = 8

    def __post_init__(self) -> None:
        chosen = [part for name, part in self.placement.parts.items() if name in self.scheme.nodes]
        self.heads = {part.name: part for part in chosen}
        self.readers = {
            (value.name, part.name) for part in chosen for value in part.inputs if g.constant(value) is None
        }
        read = {value for value, _ in self.readers}
        self.made = {  # on integers, for everybody who reads it
            value.name
            for part in chosen
            for value in part.outputs
            if not part.kernel.float_result or value.name in read
        }
        self.sources = {
            value.name: (part.inputs[0].name, part.factor)
            for part in chosen
            if part.kernel.role in ("mover", "scaler")
            for value in part.outputs
        }
        graph = self.proto.graph
        made = [node.output[0] for node in graph.node if node.op_type == "Constant"]
        self.constants = {*made, *(tensor.name for tensor in graph.initializer)}
        self.operands = dict(entry for part in chosen for entry in self._constants(part))

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """The outputs."""
        return self._graph(self.proto.graph, dict(feeds))

    def grid(self, name: str) -> Grid:
        """The grid of a value: that of what its numbers were moved from, with the step that scaling gives."""
        total = 1.0
        while name in self.sources:
            name, factor = self.sources[name]
            total *= factor
        grid = self.scheme.grids[name]
        return replace(grid, scale=grid.scale * total)

    def _constants(self, part: Part) -> list[tuple[tuple[str, int], Any]]:
        """(node, index of input) → what the integers stand for."""
        found: list[tuple[tuple[str, int], Any]] = []
        for index, value in enumerate(part.node.inputs):
            data = g.array(value)
            if value in part.inputs and data is not None:
                found.append(((part.name, index), Grid.of(data.min(), data.max()).round(data)))
        if part.weight is None:
            return found
        scale = np.float32(self.grid(part.inputs[0].name or "").scale)
        bias = self.scheme.biases.get(part.name)
        bias = g.array(part.bias) if bias is None else bias
        weight = self.scheme.weights.get(part.name) or rounded(g.array(part.weight), part.axis, self.bits)
        assert np.array_equal(raise_scales(weight.scales, float(scale), bias), weight.scales)
        found.append(((part.name, 1), weight.real()))
        if bias is not None:
            steps = scale * weight.scales
            whole = np.rint(bias.astype(np.float64) / (np.float64(scale) * weight.scales.astype(np.float64)))
            last = part.nodes[1] if part.node.op_type == "MatMul" else part.node
            index = list(last.inputs).index(part.bias) if part.bias is not None else 2
            found.append(((g.output_name(last), index), whole.astype(np.float32) * steps))
        return found

    def _graph(self, graph: onnx.GraphProto, values: Values) -> list[Any]:
        values.update((tensor.name, numpy_helper.to_array(tensor)) for tensor in graph.initializer)
        for node in graph.node:
            self._node(node, values)
        return [values[output.name] for output in graph.output]

    def _node(self, node: onnx.NodeProto, values: Values) -> None:
        unit = node.output[0]
        if node.op_type == "If":
            branches = {attribute.name: attribute.g for attribute in node.attribute}
            branch = branches["then_branch" if values[node.input[0]] else "else_branch"]
            results = self._graph(branch, dict(values))
        else:
            inputs = [self._read(name, unit, index, values) for index, name in enumerate(node.input)]
            if (unit, 2) in self.operands and len(inputs) == 2:
                inputs.append(self.operands[unit, 2])
            results = self._alone(node, inputs)
        for name, result in zip(node.output, results, strict=True):
            values[name] = self.grid(name).round(result) if name in self.made else result

    def _read(self, name: str, unit: str, index: int, values: Values) -> Any:
        if (unit, index) in self.operands:
            return self.operands[unit, index]
        if not name:
            return None
        if (name, unit) in self.readers and name not in self.made:
            return self.grid(name).round(values[name])
        return values[name]

    def _alone(self, node: onnx.NodeProto, inputs: list[Any]) -> list[Any]:
        """Constants stay constants, since kernels may pack these and then sum in another order."""
        unit = node.output[0]
        names = [f"i{index}" if value is not None else "" for index, value in enumerate(inputs)]
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        del alone.input[:]
        alone.input.extend(names)
        given = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name}
        held = {
            name
            for index, (name, old) in enumerate(zip(names, node.input, strict=False))
            if old in self.constants and (unit, index) not in self.operands
        }
        data = [numpy_helper.from_array(given[name], name) for name in held]
        feeds = {name: value for name, value in given.items() if name not in held}
        ports = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ]
        results = [onnx.ValueInfoProto(name=name) for name in node.output]
        graph = helper.make_graph([alone], "alone", ports, results, data)
        version = self.proto.ir_version
        model = helper.make_model(graph, opset_imports=self.proto.opset_import, ir_version=version)
        return compute(model, feeds)


def values_of(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> Values:
    """All floating values of the main graph, by name."""
    every = onnx.ModelProto()
    every.CopyFrom(proto)
    given = {output.name for output in every.graph.output}
    names = [n for node in every.graph.node for n in node.output if n and n not in given]
    every.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found = zip([output.name for output in every.graph.output], compute(every, feeds), strict=True)
    return {**feeds, **{name: value for name, value in found if isinstance(value, np.ndarray)}}


def grids_of(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Grid]:
    """Grids from the least to the largest number of each value, which a Relu or Clip behind cuts off."""
    found = values_of(proto, feeds).items()
    return {name: Grid.of(value.min(), value.max()) for name, value in found if value.dtype == np.float32}
