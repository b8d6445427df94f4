"""Write a scheme into a model: QuantizeLinear and DequantizeLinear around what computes on integers.

Values on a grid get one pair; chosen parts read behind it, and so does everybody else where the value was
made on integers, since the kernel gives no floats then. Weights become int8 with one scale per channel,
biases int32 on the scale of the product, s_x · s_w, which is what the accumulators hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Run
from graphopt_passes.exact.eliminate_dead_code import is_unused, remove_dead
from graphopt_passes.quantize.bias_correction import integer_bias
from graphopt_passes.quantize.fusable import STYLES
from graphopt_passes.quantize.placement import Part, Placement
from graphopt_passes.quantize.scheme import Array, Grid, IntegerWeight, Scheme
from graphopt_passes.quantize.weights import on_scales, raise_scales, rounded

if TYPE_CHECKING:
    from graphopt.model import Model

RULE = "insert-qdq"


def insert_qdq(
    model: Model, run: Run, placement: Placement, scheme: Scheme, bits: int = 8
) -> frozenset[ir.Value]:
    """Change the model in place.

    Args:
        model: of which ``placement`` tells the parts.
        run: makes constants.
        placement: the parts of this very model object.
        scheme: which of them to choose; every activation of theirs needs a grid.
        bits: of weights that the scheme does not hold.

    Returns:
        The integers of activations.
    """
    writer = _Writer(model, run, placement, scheme, bits)
    writer.write()
    return frozenset(writer.integers.values())


@dataclass
class _Writer:
    model: Model
    run: Run
    placement: Placement
    scheme: Scheme
    bits: int
    integers: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def write(self) -> None:
        names = self.scheme.nodes
        parts = [part for name, part in self.placement.parts.items() if name in names]
        heads = {part.node: part for part in parts}
        made = {value for part in parts if not part.kernel.float_result for value in part.outputs}
        grids = {value: self._grid(value) for value in self.placement.on_grids(names)}
        for value, grid in grids.items():
            maker = self.placement.makers.get(value)
            if maker is not None and maker.node in heads and maker.kernel.role == "scaler":
                self._rescale(value, grid, maker)
                continue
            inside = value in made or self._gives_integers(value, heads)
            self._put_on_grid(value, grid, heads, everywhere=inside)
        for part in parts:
            self._weigh(part, grids)
            self.run.journal.admit(RULE, part.name)

    def _grid(self, value: ir.Value) -> Grid:
        owner, factor = self.placement.origin(value, self.scheme.nodes)
        grid = self.scheme.grids[owner.name or ""]
        return replace(grid, scale=grid.scale * factor)

    def _gives_integers(self, value: ir.Value, heads: dict[ir.Node, Part]) -> bool:
        """Whether a chosen layer that could give floats gives integers, since a chosen part reads them."""
        part = self.placement.makers.get(value)
        return part is not None and part.node in heads

    def _put_on_grid(self, value: ir.Value, grid: Grid, heads: dict[ir.Node, Part], everywhere: bool) -> None:
        uses = [use for use in value.uses() if everywhere or self._reads_integers(use, heads, value)]
        at = value.producer() or next(use.node for use in value.uses())
        scale, zero = self._steps(at, value.name or "", grid)
        quantized = self._after(value, ir.Node("", "QuantizeLinear", [value, scale, zero]), "quantized")
        node = ir.Node("", "DequantizeLinear", [quantized, scale, zero])
        back = self._after(quantized, node, "dequantized")
        self.integers[value] = quantized
        back.type, back.shape = value.type, value.shape
        for use in uses:
            use.node.replace_input_with(use.idx, back)
        if everywhere and value.is_graph_output():
            self._take_output(value, quantized, back)

    def _rescale(self, value: ir.Value, grid: Grid, part: Part) -> None:
        """c·x: the integers of x, dequantized with c times its step; the node goes."""
        integers, node = self.integers[part.inputs[0]], part.node
        scale, zero = self._steps(node, value.name or "", grid)
        made = ir.Node("", "DequantizeLinear", [integers, scale, zero])
        back = self._after(integers, made, "dequantized")
        back.type, back.shape = value.type, value.shape
        self.integers[value] = integers
        g.replace(value, back)
        readings = [source.producer() for source in node.inputs if source is not None]
        g.remove(node)
        for reading in readings:
            if reading is not None and g.is_op(reading, "DequantizeLinear") and g.is_dead(reading):
                g.remove(reading)

    @staticmethod
    def _reads_integers(use: Any, heads: dict[ir.Node, Part], value: ir.Value) -> bool:
        return use.node in heads and value in heads[use.node].inputs

    def _take_output(self, value: ir.Value, quantized: ir.Value, back: ir.Value) -> None:
        """Let the dequantized value be the graph output of this name; only QuantizeLinear reads the other."""
        quantize = quantized.producer()
        assert quantize is not None
        g.replace(value, back)
        value.name = self.run.names(self.model).fresh(f"{back.name}_float")
        quantize.replace_input_with(0, value)

    def _after(self, value: ir.Value, node: ir.Node, what: str) -> ir.Value:
        """Insert a node behind a value, or at the start of its graph."""
        producer = value.producer()
        graph = producer.graph if producer is not None else value.graph
        assert graph is not None
        name = self.run.names(self.model).fresh(f"{value.name}_{what}".replace("_quantized_de", "_de"))
        node.name = node.outputs[0].name = name
        if producer is not None:
            graph.insert_after(producer, [node])
        else:
            graph.insert_before(next(iter(graph)), [node])
        return node.outputs[0]

    def _steps(self, at: ir.Node, name: str, grid: Grid) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point."""
        scale = self._constant(at, np.float32(grid.scale), f"{name}_scale")
        return scale, self._constant(at, grid.dtype.type(grid.zero_point), f"{name}_zero_point")

    def _constant(self, at: ir.Node, data: Array | np.generic, name: str) -> ir.Value:
        return self.run.new_constant(self.model, at, np.asarray(data), name)

    # Weights.

    def _weigh(self, part: Part, grids: dict[ir.Value, Grid]) -> None:
        for value in part.inputs:
            if g.constant(value) is not None:
                self._quantize_constant(part, value)
        if part.weight is None:
            return
        dequantized = part.node.inputs[0]
        assert dequantized is not None
        before = dequantized.producer()
        assert before is not None
        scale = g.array(before.inputs[1])
        assert scale is not None
        self._quantize_layer(part, float(scale))

    def _quantize_constant(self, part: Part, value: ir.Value) -> None:
        """A constant operand lies on a grid of its own."""
        data = g.array(value)
        assert data is not None
        grid = Grid.of(float(data.min(initial=0.0)), float(data.max(initial=0.0)))
        integers = self._constant(part.node, grid.quantize(data), f"{value.name}_quantized")
        scale, zero = self._steps(part.node, value.name or "", grid)
        self._dequantize(part.node, list(part.node.inputs).index(value), [integers, scale, zero], None)

    def _dequantize(self, node: ir.Node, index: int, inputs: list[ir.Value], axis: int | None) -> None:
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        new = ir.Node("", "DequantizeLinear", inputs, attributes)
        new.name = new.outputs[0].name = self.run.names(self.model).fresh(f"{inputs[0].name}_dequantized")
        assert node.graph is not None
        node.graph.insert_before(node, [new])
        node.replace_input_with(index, new.outputs[0])

    def _quantize_layer(self, part: Part, input_scale: float) -> None:
        assert part.weight is not None
        name, node, weight = part.weight.name or "weight", part.node, self._integers(part, input_scale)
        inputs = [
            self.run.new_constant(self.model, node, weight.stored or weight.data, f"{name}_quantized"),
            self._constant(node, weight.scales, f"{name}_scale"),
            self._constant(node, np.zeros(weight.scales.shape, np.int8), f"{name}_zero_point"),
        ]
        bias = self._bias(part)
        self._dequantize(node, 1, inputs, weight.axis)
        if bias is not None and STYLES[self.run.target.name].integer_bias:
            self._quantize_bias(part, bias, input_scale, weight.scales)
        elif bias is not None and part.name in self.scheme.biases:
            at, index = self._bias_place(part)
            at.replace_input_with(index, self._constant(at, bias, f"{part.name}_bias"))

    def _integers(self, part: Part, input_scale: float) -> IntegerWeight:
        """The weight's integers, on scales with which the bias fits into 32 bits."""
        found, bias = self.scheme.weights.get(part.name), self._bias(part)
        real = g.array(part.weight)
        assert real is not None
        if found is None:
            found = rounded(real, part.axis, self.bits)
        scales = raise_scales(found.scales, input_scale, bias)
        same = np.array_equal(scales, found.scales)
        return found if same else on_scales(real, scales, part.axis, self.bits)

    def _bias(self, part: Part) -> Array | None:
        corrected = self.scheme.biases.get(part.name)
        return corrected if corrected is not None else g.array(part.bias)

    @staticmethod
    def _bias_place(part: Part) -> tuple[ir.Node, int]:
        """The node that adds the bias, and the index of its input, which is made if there is none."""
        node = part.nodes[1] if part.node.op_type == "MatMul" else part.node
        index = list(node.inputs).index(part.bias) if part.bias is not None else 2
        if index >= len(node.inputs):
            node.resize_inputs(3)
        return node, index

    def _quantize_bias(self, part: Part, bias: Array, input_scale: float, scales: Array) -> None:
        node, index = self._bias_place(part)
        name = part.bias.name if part.bias is not None else f"{part.name}_bias"
        products = (np.float32(input_scale) * scales).astype(np.float32)
        inputs = [
            self._constant(node, integer_bias(bias, input_scale, scales), f"{name}_quantized"),
            self._constant(node, products, f"{name}_scale"),
            self._constant(node, np.zeros(products.shape, np.int32), f"{name}_zero_point"),
        ]
        self._dequantize(node, index, inputs, 0)


def drop_unused(model: Model) -> None:
    """Remove constants that nothing reads any more."""
    for graph in g.graphs(model.ir):
        for name, value in list(graph.initializers.items()):
            if is_unused(value):
                del graph.initializers[name]
        for node in reversed(graph):
            if g.is_op(node, "Constant"):
                remove_dead(node)
