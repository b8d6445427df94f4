"""How nodes with constant weights are written with activations that are quantized as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Run
from graphopt.rewrite import RefusedError
from graphopt_passes.exact.eliminate_dead_code import remove_dead
from graphopt_passes.quantize.scheme import Array, IntegerWeight
from graphopt_passes.quantize.weights import clipped

if TYPE_CHECKING:
    from graphopt.model import Model

RULE = "quantize-dynamic"
CONTRIB = "com.microsoft"
_LEAST = 1 << 12  # elements of a weight; products with smaller ones are no faster on integers
_MOST_TERMS = (2**31 - 1) // (255 * 127)  # of a sum of products that cannot exceed 32 bits
_QATTENTION = {
    "do_rotary",
    "mask_filter_value",
    "num_heads",
    "past_present_share_buffer",
    "scale",
    "unidirectional",
}

Write = Callable[[], None]


def kind(node: ir.Node) -> tuple[str, str]:
    """The domain and type of an operator."""
    return ("" if node.domain in g.DEFAULT_DOMAINS else node.domain), node.op_type


@dataclass
class Writer:
    """Writes quantized nodes; tensors and weights that several of them read are quantized once.

    Attributes:
        model, run: what is changed, and its record.
        bits: of weights.
    """

    model: Model
    run: Run
    bits: int
    _activations: dict[tuple[ir.Value, ir.Graph], Sequence[ir.Value]] = field(default_factory=dict)
    _weights: dict[tuple[ir.Value, bool, float], tuple[ir.Value, ir.Value]] = field(default_factory=dict)

    def quantize(self, node: ir.Node) -> bool:
        """Quantize a node if that can be done and is admitted; refusals go to the journal."""
        try:
            _require(not self.run.keeps(node), "it is to be kept (--keep)")
            write = WAYS[kind(node)](self, node)
        except (RefusedError, KeyError) as refused:
            self.run.journal.refuse(RULE, g.label(node), str(refused.args[0]))
            return False
        if not self.run.journal.admit(RULE, g.output_name(node)):
            return False
        write()
        return True

    # The ways: each checks first, and gives what is to be done then.

    def matmul(self, node: ir.Node) -> Write:
        """X·W, W of rank 2 and X of any."""
        self._check_weight(node, 1, terms=0)
        return lambda: self._replace(node, self._product(node))

    def gemm(self, node: ir.Node) -> Write:
        """α·X·W' + β·C, W' transposed or not; α goes into the scales, and β into a constant C."""
        alpha, beta, turned = (
            g.attribute(node, *one) for one in (("alpha", 1.0), ("beta", 1.0), ("transB", 0))
        )
        self._check_weight(node, 1, terms=1 if turned else 0)
        _require(not g.attribute(node, "transA", 0), "its input is transposed")
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        _require(bias is None or beta == 1 or g.constant(bias), "it scales a bias that is no constant")

        def write() -> None:
            result = self._product(node, bool(turned), float(alpha))
            if bias is not None:
                addend = (
                    bias if beta == 1 else self._constant(node, beta * _array(bias), f"{bias.name}_scaled")
                )
                [result] = self._insert(node, "Add", [result, addend], "sum")
            self._replace(node, result)

        return write

    def lstm(self, node: ir.Node) -> Write:
        """W [directions, 4·hidden, inputs] and R [directions, 4·hidden, hidden] are transposed."""
        for index in (1, 2):
            self._check_weight(node, index, terms=2)
        _require(not g.attribute(node, "layout", 0), "its layout is batch first")

        def write() -> None:
            inputs = [*node.inputs, *[None] * 8][:8]
            for index in (1, 2):
                inputs[index], *grid = self._per_direction(node, index)
                inputs += grid
            self._become(node, "DynamicQuantizeLSTM", inputs)

        return write

    def attention(self, node: ir.Node) -> Write:
        """The projection of com.microsoft Attention, X·W + b; the attention itself is computed on floats."""
        self._check_weight(node, 1, terms=0)
        _, _, bias, mask, past, *others = [*node.inputs, *[None] * 7][:7]
        _require(not any(others), "it has inputs that QAttention lacks")
        unknown = sorted(node.attributes.keys() - _QATTENTION)
        _require(not unknown, f"QAttention has no {', '.join(unknown)}")

        def write() -> None:
            x, scale, zero = self._dynamic(node)
            data, scales = self._quantized(node)
            count = int(_array(scales).size)
            zeros = self._constant(node, np.zeros(count, np.int8), f"{data.name}_zero_point")
            addend = bias or self._constant(node, np.zeros(count, np.float32), f"{data.name}_bias")
            self._become(node, "QAttention", [x, data, addend, scale, scales, mask, zero, zeros, past])

        return write

    # What they share.

    def _check_weight(self, node: ir.Node, index: int, terms: int) -> None:
        """Refuse what is no constant weight that pays; ``terms`` is the axis along which it is summed."""
        tensor = g.constant(node.inputs[index])
        _require(tensor is not None, f"its input {index} is no constant")
        assert tensor is not None
        _require(tensor.dtype is ir.DataType.FLOAT, f"its weight is {tensor.dtype.name}")
        shape = tensor.shape.numpy()
        rank = 3 if node.op_type == "LSTM" else 2
        _require(len(shape) == rank, f"its weight has rank {len(shape)}, not {rank}")
        _require(tensor.size >= _LEAST, f"its weight of {tensor.size} elements is too small to pay")
        _require(shape[terms] <= _MOST_TERMS, "its sums may exceed 32 bits")
        _require(np.isfinite(tensor.numpy()).all(), "its weight holds NaN or infinity")

    def _product(self, node: ir.Node, turned: bool = False, alpha: float = 1.0) -> ir.Value:
        """α·X·W in ONNX's own operators, in the order that ONNX Runtime looks for."""
        x, scale, zero = self._dynamic(node)
        data, scales = self._quantized(node, turned, alpha)
        [sums] = self._insert(node, "MatMulInteger", [x, data, zero], "integers")
        [real] = self._insert(node, "Cast", [sums], "sums", to=int(ir.DataType.FLOAT))
        [both] = self._insert(node, "Mul", [scale, scales], "scales")
        return self._insert(node, "Mul", [real, both], "product")[0]

    def _dynamic(self, node: ir.Node) -> Sequence[ir.Value]:
        """The first input as uint8, its scale and zero point; nodes of one graph share them."""
        x = node.inputs[0]
        assert x is not None and node.graph is not None
        if (x, node.graph) not in self._activations:
            made = self._insert(node, "DynamicQuantizeLinear", [x], "input")
            self._activations[x, node.graph] = made
        return self._activations[x, node.graph]

    def _quantized(
        self, node: ir.Node, turned: bool = False, alpha: float = 1.0
    ) -> tuple[ir.Value, ir.Value]:
        """The weight as int8 [inputs, channels], and α times its scales; made once for each use alike."""
        value = node.inputs[1]
        assert value is not None
        key = (value, turned, alpha)
        if key not in self._weights:
            found = self._fit(_array(value), 0 if turned else 1)
            data = np.ascontiguousarray(found.data.T) if turned else found.data
            scales = (found.scales * np.float32(alpha)).astype(np.float32)
            self._weights[key] = self._constants(node, _name(value), data, scales)
        return self._weights[key]

    def _per_direction(self, node: ir.Node, index: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        """An LSTM's weight as int8 [directions, terms, channels], scales and zero points per channel."""
        value = node.inputs[index]
        found = [self._fit(weight, 0) for weight in _array(value)]
        assert value is not None
        scales = np.stack([one.scales for one in found])
        data, factors = self._constants(node, _name(value), np.stack([one.data.T for one in found]), scales)
        zeros = self._constant(node, np.zeros(scales.shape, np.int8), f"{value.name}_zero_point")
        return data, factors, zeros

    def _fit(self, weight: Array, axis: int) -> IntegerWeight:
        return clipped(weight, axis, bits=self.bits)

    def _constants(self, node: ir.Node, name: str, data: Array, scales: Array) -> tuple[ir.Value, ir.Value]:
        integers = self._constant(node, data, f"{name}_quantized")
        return integers, self._constant(node, scales, f"{name}_scale")

    def _constant(self, node: ir.Node, data: Array, name: str) -> ir.Value:
        return self.run.new_constant(self.model, node, data, name)

    def _insert(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value], what: str, **attributes: int
    ) -> Sequence[ir.Value]:
        """The outputs of a new node before this one."""
        given = ir.convenience.convert_attributes(attributes)
        count = 3 if op_type == "DynamicQuantizeLinear" else 1
        new = ir.Node("", op_type, inputs, given, num_outputs=count)
        for value in new.outputs:
            value.name = self.run.names(self.model).fresh(f"{g.output_name(node)}_{what}")
        new.name = new.outputs[0].name
        assert node.graph is not None
        node.graph.insert_before(node, [new])
        return new.outputs

    def _replace(self, node: ir.Node, result: ir.Value) -> None:
        g.inherit(node.outputs[0], result)
        remove_dead(node)

    def _become(self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None]) -> None:
        """Put an operator of ONNX Runtime's own in the place of a node, with its attributes and outputs."""
        kept = [a for a in node.attributes.values() if a.name != "layout"]
        new = ir.Node(CONTRIB, op_type, _trimmed(inputs), kept, num_outputs=len(node.outputs))
        new.name = node.name
        assert node.graph is not None
        node.graph.insert_before(node, [new])
        for old, value in zip(node.outputs, new.outputs, strict=True):
            g.inherit(old, value)
        self.model.ir.graph.opset_imports.setdefault(CONTRIB, 1)
        remove_dead(node)


def _impossible(_: Writer, node: ir.Node) -> Write:
    raise RefusedError(f"ONNX Runtime has no integer kernel for {node.op_type}")


def _require(condition: object, why_not: str) -> None:
    if not condition:
        raise RefusedError(why_not)


def _array(value: ir.Value | None) -> Array:
    found = g.array(value)
    assert found is not None
    return found


def _name(value: ir.Value) -> str:
    return value.name or "weight"


def _trimmed(inputs: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """Inputs without those that are omitted at the end."""
    last = max((index for index, value in enumerate(inputs) if value is not None), default=-1)
    return list(inputs[: last + 1])


WAYS: dict[tuple[str, str], Callable[[Writer, ir.Node], Write]] = {
    ("", "MatMul"): Writer.matmul,
    ("", "Gemm"): Writer.gemm,
    ("", "LSTM"): Writer.lstm,
    (CONTRIB, "Attention"): Writer.attention,
    ("", "GRU"): _impossible,
    ("", "RNN"): _impossible,
}
"""Domain and operator → the way to quantize it, or to say why it cannot be."""
