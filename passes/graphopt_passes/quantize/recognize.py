"""What of a model is quantized already, and how: that is kept, and quantized no second time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graph as g
from graphopt.inspection import quantization

# Layers that compute on integers by themselves, of the default domain and of com.microsoft.
_INTEGER_LAYERS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "QGemm",
        "QAttention",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulIntegerToFloat",
        "MatMulNBits",
    }
)
_FLOAT_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU")
_VIEWS = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten")
_INT8 = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)

INTEGERS, PAIRS, WEIGHTS = "integer operators", "Q/DQ pairs", "weights only"


@dataclass(frozen=True)
class Recognized:
    """How the layers of a model are quantized.

    Attributes:
        styles: ``integer operators``, ``Q/DQ pairs`` or ``weights only`` → number of layers.
        layers: number of layers with weights, those on floats included.
        operators: quantizing operator → number of nodes.
    """

    styles: dict[str, int]
    layers: int
    operators: dict[str, int]

    @property
    def share(self) -> float:
        """The share of the layers that are quantized, 0 to 1."""
        return sum(self.styles.values()) / self.layers if self.layers else 0.0

    def __str__(self) -> str:
        """One line for people."""
        styles = [f"{count} by {style}" for style, count in self.styles.items()]
        nodes = [f"{count} {operator}" for operator, count in self.operators.items()]
        return (
            f"{sum(self.styles.values())} of {self.layers} layers were quantized before"
            f" ({', '.join(styles + nodes)}); they are kept as they are"
        )


def recognize(model: ir.Model) -> Recognized | None:
    """How a model is quantized; ``None`` if no layer is."""
    styles: Counter[str] = Counter()
    floats = 0
    for node in g.nodes(model):
        found = style(node)
        if found is not None:
            styles[found] += 1
        elif g.is_op(node, *_FLOAT_LAYERS):
            floats += g.constant(_origin(node.inputs[1])) is not None
    if not styles:
        return None
    return Recognized(dict(styles), sum(styles.values()) + floats, quantization(model))


def is_quantized(node: ir.Node) -> bool:
    """Whether a node is a quantized layer, or reads what a DequantizeLinear makes."""
    return style(node) is not None or any(map(_is_dequantized, node.inputs))


def style(node: ir.Node) -> str | None:
    """How one layer is quantized; ``None`` if it is not, or is no layer."""
    if node.op_type in _INTEGER_LAYERS:
        return INTEGERS
    if not g.is_op(node, *_FLOAT_LAYERS) or len(node.inputs) < 2:
        return None
    weight = _origin(node.inputs[1])
    if _is_dequantized(weight):
        return PAIRS if _is_dequantized(_origin(node.inputs[0])) else WEIGHTS
    return WEIGHTS if _is_decoded(weight) else None


def _origin(value: ir.Value | None) -> ir.Value | None:
    """What a value is a view of."""
    while value is not None and g.is_op(value.producer(), *_VIEWS):
        node = value.producer()
        assert node is not None
        value = node.inputs[0]
    return value


def _is_dequantized(value: ir.Value | None) -> bool:
    return value is not None and g.is_op(value.producer(), "DequantizeLinear")


def _is_decoded(value: ir.Value | None) -> bool:
    """Whether Cast, and then Sub or Mul, make floats of constant integers of at most 8 bits."""
    node = None if value is None else value.producer()
    while node is not None and g.is_op(node, "Mul", "Sub", *_VIEWS):
        value = node.inputs[0]
        node = None if value is None else value.producer()
    if node is None or not g.is_op(node, "Cast"):
        return False
    tensor = g.constant(_origin(node.inputs[0]))
    return tensor is not None and tensor.dtype in _INT8
