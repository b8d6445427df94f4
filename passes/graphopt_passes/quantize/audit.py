"""The fusion audit: does ONNX Runtime compute on integers where a model asks it to?

QuantizeLinear and DequantizeLinear (Q, DQ) only ask. Where the runtime has no kernel, or a condition fails,
it keeps the float operator and runs the conversions around it, and the model is slower than before. The
audit reads the graph that really runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from graphopt import graph as g
from graphopt.proof.executed import ABSORBED, HEAVY, QUANTIZE, Executed
from graphopt_passes.quantize.reasons import EQUAL_GRIDS, reason

Kind = Literal["float", "useless", "weight", "unasked"]

_INTEGER_KERNELS = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantize")
_MOVERS = EQUAL_GRIDS | {"NhwcMaxPool"}
_WEIGHT_ONLY_KERNELS = ("MatMulNBits",)
_FREE_GRIDS = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax", "Where"}
)
_FUSIBLE = _FREE_GRIDS | EQUAL_GRIDS
_ROUNDED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_UNASKED = "the runtime rounds its float weight to 8 bits, with one scale for all of it"
_EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True)
class Problem:
    """One place where the model asks for integers in vain, or gets them where it asks for floats.

    Attributes:
        unit: the model's node, known by its first output's name; or a value, for ``useless``.
        kind: ``float``: a node between DQ and Q that computes on floats; ``useless``: a value that is
            quantized although floats are computed before and behind; ``weight``: a constant that is
            dequantized in every run; ``unasked``: a layer with a float weight that computes on integers.
        reason: why, in words.
    """

    unit: str
    kind: Kind
    reason: str

    def __str__(self) -> str:
        return f"'{self.unit}': {self.reason}"


@dataclass(frozen=True)
class Audit:
    """What the runtime made of a quantized model; units are known by their first output's name.

    Attributes:
        fused: the units that compute on integers.
        problems: where they should and do not, each unit once per kind.
        weight_only: heavy units whose weights alone are quantized, on purpose.
    """

    fused: frozenset[str]
    problems: tuple[Problem, ...]
    weight_only: frozenset[str]

    @property
    def green(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def audit(executed: Executed) -> Audit:
    """Compare what a model asks for with what runs."""
    return _Auditor(executed).run()


class _Auditor:
    def __init__(self, executed: Executed) -> None:
        self._executed = executed
        self._nodes = list(executed.nodes())
        self._units = {g.output_name(node): node for node in g.nodes(executed.model)}
        self._opset = g.opset(executed.model, executed.model.graph)

    def run(self) -> Audit:
        fused = {unit for node in self._nodes if self._on_integers(node) for unit in self._all_of(node)}
        floats = dict.fromkeys(unit for node in self._nodes if self._asks(node) for unit in self._of(node))
        rounded = {unit for unit in (*fused, *self._with_integers()) if self._wants_floats(unit)}
        asked = [unit for unit in floats if unit not in rounded]
        problems = [Problem(unit, "float", reason(self._units[unit], self._opset)) for unit in asked]
        problems += self._useless(floats)
        problems += [Problem(unit, "unasked", _UNASKED) for unit in sorted(rounded)]
        weight_only, surviving = self._constants(floats)
        name = self._executed.float_name
        found = [replace(problem, unit=name(problem.unit)) for problem in (*problems, *surviving)]
        return Audit(
            frozenset(map(name, fused)),
            tuple(dict.fromkeys(found)),
            frozenset(map(name, weight_only - rounded)),
        )

    def _of(self, node: ir.Node) -> tuple[str, ...]:
        return self._executed.units(node)

    def _all_of(self, node: ir.Node) -> list[str]:
        absorbed = [found for found in self._executed.covered(node) if found.op_type in ABSORBED]
        return [*self._of(node), *map(g.output_name, absorbed)]

    def _on_integers(self, node: ir.Node) -> bool:
        """Whether a node computes on integers, or moves them."""
        if self._executed.converts(node):
            return False
        moves = node.op_type in _MOVERS and self._is_integer(node.inputs[0])
        return moves or node.op_type.startswith(_INTEGER_KERNELS)

    def _is_integer(self, value: ir.Value | None) -> bool:
        """Whether a value holds quantized numbers."""
        producer = None if value is None else value.producer()
        if value is None or producer is None:
            constant = g.constant(value)
            return constant is not None and constant.dtype in _EIGHT_BITS and constant.size > 1
        if producer.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            return True
        if producer.op_type == "QGemm":
            return len(producer.inputs) > 7 and producer.inputs[7] is not None  # has a scale for its result
        if producer.op_type in _MOVERS or self._moves(producer):
            return self._is_integer(producer.inputs[0])
        return producer.op_type.startswith("QLinear")

    def _asks(self, node: ir.Node) -> bool:
        """Whether a float node stands where the model asks for integers."""
        if self._executed.converts(node) or self._on_integers(node):
            return False
        wanted = [self._units[unit] for unit in self._of(node)]
        if any(unit.op_type in HEAVY for unit in wanted):
            return all(self._dequantized(value) for value in node.inputs[:2])
        if not any(unit.op_type in _FUSIBLE for unit in wanted):
            return False
        operands = node.inputs[1:] if node.op_type == "Where" else node.inputs
        operands = operands[:1] if wanted[0].op_type in EQUAL_GRIDS else operands
        return all(map(self._dequantized, operands)) and any(
            reader.op_type == "QuantizeLinear" for value in node.outputs for reader in self._readers(value)
        )

    def _with_integers(self) -> Iterator[str]:
        """Units whose weights are dequantized."""
        for node in self._nodes:
            if len(node.inputs) > 1 and self._dequantized(node.inputs[1]):
                yield from self._of(node)

    def _wants_floats(self, unit: str) -> bool:
        """Whether a unit is a layer whose weight is a float constant."""
        node = self._units[unit]
        weight = g.constant(node.inputs[1]) if g.is_op(node, *_ROUNDED) else None
        return weight is not None and weight.dtype is ir.DataType.FLOAT

    def _useless(self, floats: dict[str, None]) -> Iterator[Problem]:
        """Values that are quantized and read by nobody as integers, or dequantized only to be quantized."""
        for node in self._nodes:
            if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
                continue
            name = self._executed.converted(node) or g.output_name(node)
            if self._dequantized(node.inputs[0]):
                yield Problem(name, "useless", f"it changes from one grid to another{self._standalone(node)}")
            readers = list(self._readers(node.outputs[0]))
            if node.outputs[0].is_graph_output() or any(r.op_type != "DequantizeLinear" for r in readers):
                continue
            behind = [use for reader in readers for use in self._readers(reader.outputs[0])]
            beside = [*behind, self._maker(node.inputs[0])]
            if not any(unit in floats for other in beside if other is not None for unit in self._of(other)):
                who = ", ".join(dict.fromkeys(reader.op_type for reader in behind)) or "the graph's output"
                yield Problem(name, "useless", f"it is quantized, but {who} takes floats")

    def _standalone(self, quantize: ir.Node) -> str:
        between = [node.op_type for node in self._executed.covered(quantize) if node.op_type in ABSORBED]
        return f": a standalone {between[0]} is between" if between else ""

    def _constants(self, floats: dict[str, None]) -> tuple[set[str], list[Problem]]:
        """Units whose weights alone are quantized, and constants that are dequantized in every run."""
        weight_only = {
            unit for node in self._nodes if node.op_type in _WEIGHT_ONLY_KERNELS for unit in self._of(node)
        }
        problems = []
        for node in self._nodes:
            if node.op_type != "DequantizeLinear" or g.constant(node.inputs[0]) is None:
                continue
            for unit in (unit for reader in self._readers(node.outputs[0]) for unit in self._of(reader)):
                op_type = self._units[unit].op_type
                if op_type in HEAVY:
                    weight_only.add(unit)
                elif unit not in floats:
                    what = "its whole table" if op_type == "Gather" else "a constant input"
                    problems.append(Problem(unit, "weight", f"{what} is dequantized in every run"))
        return weight_only - set(floats), problems

    def _dequantized(self, value: ir.Value | None) -> bool:
        maker = self._maker(value)
        return maker is not None and maker.op_type == "DequantizeLinear"

    def _maker(self, value: ir.Value | None) -> ir.Node | None:
        """The node that makes a value, before changes of its layout."""
        maker = None if value is None else value.producer()
        return self._maker(maker.inputs[0]) if maker is not None and self._moves(maker) else maker

    def _readers(self, value: ir.Value) -> Iterator[ir.Node]:
        """The nodes that read a value, behind changes of its layout."""
        for use in value.uses():
            if self._moves(use.node):
                yield from self._readers(use.node.outputs[0])
            else:
                yield use.node

    def _moves(self, node: ir.Node) -> bool:
        """Whether a node changes the layout of a value and nothing else."""
        return node.op_type not in QUANTIZE and self._executed.converts(node)
