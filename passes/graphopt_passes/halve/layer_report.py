"""What is reported of each node: in which type it computes, and if it is float why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graph as g
from graphopt.report import LayerReport
from graphopt_passes.halve.signatures import TENSOR
from graphopt_passes.halve.types import Types
from graphopt_passes.quantize.sensitivity import decibels


@dataclass(frozen=True)
class Findings:
    """What is known of a model's nodes.

    Attributes:
        model: the float model.
        half: ``float16`` or ``bfloat16``.
        able: first outputs of the nodes that could be half.
        reasons: first output → why it is float.
        noises: first output → noise power over signal power if the node alone is half.
    """

    model: ir.Model
    half: str
    able: Collection[str]
    reasons: Mapping[str, str]
    noises: Mapping[str, float]

    def describe(self, halves: Collection[str]) -> tuple[LayerReport, ...]:
        """One report for each node that reads or makes floats; ``halves`` are the nodes in half."""
        return tuple(self._layer(node, g.output_name(node) in halves) for node in self._nodes())

    def _nodes(self) -> Iterator[ir.Node]:
        types = Types(self.model)
        for node in g.nodes(self.model):
            if g.is_op(node, "Constant") or g.has_subgraph(node):
                continue
            if any(types.of(value) == TENSOR for value in (*node.inputs, *node.outputs)):
                yield node

    def _layer(self, node: ir.Node, is_half: bool) -> LayerReport:
        name = g.output_name(node)
        noise = self.noises.get(name)
        return LayerReport(
            name,
            node.op_type,
            self.half if is_half else "float32",
            sqnr_db=None if noise is None else decibels(noise),
            reason="" if is_half else self._why(name),
        )

    def _why(self, name: str) -> str:
        if name in self.reasons:
            return self.reasons[name]
        if name not in self.able:
            return f"no kernel for {self.half} is known"
        return f"Casts around it would cost more than {self.half} saves"
