"""Which types each input and output of a node may have: read from operator schemas, not kept as a list.

A type is its text in the schemas, such as ``tensor(float)`` or ``seq(tensor(float16))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import onnx_ir as ir
from onnx.defs import OpSchema

from graphopt import graph as g
from graphopt.shapes.schema import schema
from graphopt_passes.halve.contrib import DOMAIN, FORMS, NO_BFLOAT16

FLOAT = "float"
TENSOR = f"tensor({FLOAT})"
HALVES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_HALF_TYPES = {f"tensor({half})" for half in HALVES}

# Inputs that schemas allow to be half, and that kernels of ONNX Runtime read as float whatever they are.
_READ_AS_FLOAT = {"Resize": (1, 2)}
# Operators without a kernel for halves that a Cast could replace, found by trying them all;
# ranges that each run finds, in float; and bits taken for another type.
_FLOAT_ONLY = frozenset(
    {
        "BitCast",
        "DynamicQuantizeLinear",
        "EyeLike",
        "MeanVarianceNormalization",
        "MelWeightMatrix",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
# Their kernels for halves only move elements.
_FLOAT_REDUCTIONS = ("ScatterElements", "ScatterND")


@dataclass(frozen=True)
class Port:
    """An input or output: ports of one node with the same ``variable`` have the same type, one of these."""

    variable: str
    types: frozenset[str]


@dataclass(frozen=True)
class Signature:
    """The ports of an operator; the last input and the last output stand for all that follow."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def input(self, index: int) -> Port:
        """The port of an input."""
        return self.inputs[min(index, len(self.inputs) - 1)]

    def output(self, index: int) -> Port:
        """The port of an output."""
        return self.outputs[min(index, len(self.outputs) - 1)]

    def is_bound(self, variable: str) -> bool:
        """Whether the inputs decide this type."""
        return any(port.variable == variable for port in self.inputs)


@cache
def signature(op_type: str, version: int, domain: str) -> Signature | None:
    """The ports of an operator at an opset; ``None`` if nothing describes it, as custom operators."""
    if domain == DOMAIN and op_type in FORMS:
        return _contrib(op_type)
    found = None if domain else schema(op_type, version, domain)
    if found is None:
        return None
    only, floats = op_type in _FLOAT_ONLY, _READ_AS_FLOAT.get(op_type, ())
    inputs = [_port(port, only or index in floats) for index, port in enumerate(found.inputs)]
    outputs = [_port(port, only) for port in found.outputs]
    if (
        op_type == "DequantizeLinear"
    ):  # its result has the type of the scale, though from opset 23 not by name
        outputs = [Port(inputs[1].variable, outputs[0].types)]
    return Signature(tuple(inputs), tuple(outputs))


def may_be(op_type: str, version: int, half: str) -> bool:
    """Whether a standard operator of an opset has an input or output that may be half."""
    found = signature(op_type, version, "")
    ports = () if found is None else (*found.inputs, *found.outputs)
    return any(f"tensor({half})" in port.types for port in ports)


def signature_of(node: ir.Node, model: ir.Model) -> Signature | None:
    """The ports of a node at the opset in force."""
    if g.is_op(node, *_FLOAT_REDUCTIONS) and node.attributes.get("reduction") is not None:
        return None
    if g.is_op(node, "DequantizeLinear") and node.attributes.get("output_dtype") is not None:
        return None
    if node.domain in g.DEFAULT_DOMAINS:
        return signature(node.op_type, g.opset(model, _graph(node)), "")
    return signature(node.op_type, int(model.opset_imports.get(node.domain, 1)), node.domain)


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _port(found: OpSchema.FormalParameter, only_float: bool) -> Port:
    return Port(
        found.type_str, frozenset(found.types) - _HALF_TYPES if only_float else frozenset(found.types)
    )


def _contrib(op_type: str) -> Signature:
    inputs, outputs = FORMS[op_type]
    halves = ("float16",) if op_type in NO_BFLOAT16 else tuple(HALVES)
    return Signature(*(tuple(_letter(one, halves) for one in letters) for letters in (inputs, outputs)))


def _letter(letter: str, halves: Sequence[str]) -> Port:
    names = {"f": [FLOAT], ".": []}.get(letter, [FLOAT, *halves])
    return Port(TENSOR if letter == "f" else letter, frozenset(f"tensor({name})" for name in names))


def text_of(kind: ir.TypeProtocol | None) -> str:
    """The text of a type; empty for an unknown one, and for those that hold no tensors."""
    if isinstance(kind, ir.TensorType):
        return f"tensor({kind.dtype.name.lower()})"
    if isinstance(kind, ir.SequenceType):
        return _around("seq", text_of(kind.elem_type))
    if isinstance(kind, ir.OptionalType):
        return _around("optional", text_of(kind.elem_type))
    return ""


def _around(what: str, inner: str) -> str:
    return f"{what}({inner})" if inner else ""


def inner(text: str) -> str:
    """The type of what a sequence or an optional holds; other types as they are."""
    head, _, rest = text.partition("(")
    return rest[:-1] if head in ("seq", "optional") else text


def is_float(text: str) -> bool:
    """Whether values of a type hold 32-bit floats."""
    return text.endswith(TENSOR + ")" * (text.count("(") - 1))


def halved(text: str, half: str) -> str:
    """A type with ``float16`` or ``bfloat16`` in place of float."""
    return text.replace(TENSOR, f"tensor({half})")
