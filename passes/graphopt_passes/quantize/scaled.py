"""Which values a factor per channel moves through: the smallest set around a value that can be divided alone.

If x is divided by s, what makes it must make x/s, and what reads it must make up for s or pass it on:

    x·W = (x/s)·(s·W)        f(x/s) = f(x)/s for f of degree one        (n·γ + β)/s = n·(γ/s) + β/s

So the set grows along operators of degree one in all operands (Add, Concat), in one of them (Mul; the values
of attention) or in the first (Relu, pooling, whatever only moves elements). It ends at layers and constants:
layers that make its channels have their rows divided, those that read them their columns multiplied, and
constants between are divided. With residual connections many layers share one set. There is none if it would
reach an input or output of the graph, or an operator of another kind. Where the channels lie in each value is
for :mod:`places <graphopt_passes.quantize.places>` to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Run
from graphopt.rewrite import RefusedError
from graphopt_passes.axes.space import Port
from graphopt_passes.quantize.layers import LINEAR, Layer, own_constant

_ALL = ("Add", "Concat", "Mean", "Sub", "Sum")
_ONE = ("Div", "Mul")
_FIRST = (
    *("Abs", "Identity", "LeakyRelu", "Neg", "PRelu", "Relu", "Dropout"),
    *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Pad", "Resize"),
    *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
    *("DepthToSpace", "Expand", "Flatten", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile"),
    *("Transpose", "Unsqueeze"),
)
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")


@dataclass
class Scaled:
    """Values that are divided together.

    Attributes:
        run: of the pass.
        values: the set.
        passed: nodes that pass the factor on.
        makers: layers whose rows are divided.
        readers: layers whose columns are multiplied.
        divided: constants that are divided: biases, what is added, the parameters of normalizations.
    """

    run: Run
    values: dict[ir.Value, None] = field(default_factory=dict)
    passed: dict[ir.Node, int] = field(default_factory=dict)
    makers: dict[ir.Node, Layer] = field(default_factory=dict)
    readers: dict[ir.Node, Layer] = field(default_factory=dict)
    divided: list[Port] = field(default_factory=list)
    _todo: list[ir.Value] = field(default_factory=list)

    @classmethod
    def around(cls, value: ir.Value, run: Run) -> Scaled:
        """The set that a value belongs to.

        Raises:
            RefusedError: there is none; the text says why.
        """
        found = cls(run)
        found._reach(value)
        while found._todo:
            found._visit(found._todo.pop())
        return found

    def _reach(self, value: ir.Value) -> None:
        if value not in self.values:
            self.values[value] = None
            self._todo.append(value)

    def _visit(self, value: ir.Value) -> None:
        node = value.producer()
        require(node is not None and not value.is_graph_input(), f"'{value.name}' is a graph input")
        require(not value.is_graph_output(), f"'{value.name}' is a graph output")
        assert node is not None
        self._make(node)
        for use in value.uses():
            inside = use.node.graph is node.graph
            require(inside, f"'{value.name}' is captured by a subgraph")
            self._read(use.node, use.idx)

    def _make(self, node: ir.Node) -> None:
        """Let a node make a value of the set."""
        if _is_layer(node):
            self._free(node)
            self.makers[node] = Layer.of(node)
            self._bias(node)
        elif g.is_op(node, *_NORMS):
            self._divide(node, *(i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None))
        elif g.is_op(node, *_ONE):
            self._one(node)
        elif g.is_op(node, "MatMul"):
            self._carry(node, 1)  # probabilities times values
        else:
            self._pass(node, 0)

    def _bias(self, node: ir.Node) -> None:
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            self._divide(node, 2)

    def _read(self, node: ir.Node, index: int) -> None:
        """Let a node read a value of the set."""
        if _is_layer(node):
            require(index == 0, f"{g.label(node)} reads '{_name(node, index)}' as its weight or bias")
            self._free(node)
            self.readers[node] = Layer.of(node)
        elif g.is_op(node, *_ONE):
            require(index == 0 or g.is_op(node, "Mul"), f"{g.label(node)} divides by '{_name(node, index)}'")
            self._carry(node, index)
        elif g.is_op(node, "MatMul") and index == 1:
            self._carry(node, index)
        else:
            self._pass(node, index)

    def _pass(self, node: ir.Node, index: int) -> None:
        """Step over a node of degree one in all operands, or in the first."""
        if node in self.passed:
            return
        everything = g.is_op(node, *_ALL)
        known = everything or (index == 0 and g.is_op(node, *_FIRST) and not _adds(node))
        require(known, f"{g.label(node)} does not scale with '{_name(node, index)}'")
        self._carry(node, index)
        for at in range(len(node.inputs)) if everything else ():
            self._operand(node, at)

    def _one(self, node: ir.Node) -> None:
        """A product is divided where a constant is, or else by the factor that has a constant itself."""
        if node in self.passed:
            return
        factors = range(len(node.inputs) if g.is_op(node, "Mul") else 1)
        constants = [at for at in factors if _is_constant(node, at)]
        made = [at for at in factors if _has_constant(node, at)]
        carrier = (*constants, *made, 0)[0]
        self.passed[node] = carrier
        self._operand(node, carrier)

    def _carry(self, node: ir.Node, index: int) -> None:
        """The operand at `index` carries the factor to all outputs."""
        first = self.passed.setdefault(node, index)
        twice = g.is_op(node, *_ONE) and first != index
        require(not twice, f"{g.label(node)} scales with two of its operands")
        self._operand(node, index)
        for output in node.outputs if g.is_op(node, "Split") else node.outputs[:1]:
            self._reach(output)

    def _operand(self, node: ir.Node, index: int) -> None:
        value = node.inputs[index]
        assert value is not None
        if g.constant(value) is None:
            self._reach(value)
        else:
            self._divide(node, index)

    def _divide(self, node: ir.Node, *indices: int) -> None:
        self._free(node)
        for index in indices:
            own_constant(node, index)
            if (port := Port(node, index)) not in self.divided:
                self.divided.append(port)

    def _free(self, node: ir.Node) -> None:
        require(not self.run.keeps(node), f"{g.label(node)} is to be kept (--keep)")


def require(condition: object, why_not: str) -> None:
    """Refuse with a reason unless the condition holds.

    Raises:
        RefusedError: it does not.
    """
    if not condition:
        raise RefusedError(why_not)


def _is_layer(node: ir.Node) -> bool:
    """Whether it is linear; a product of two values only carries the second's channels on."""
    both = g.is_op(node, "MatMul") and not (_is_constant(node, 0) or _is_constant(node, 1))
    return g.is_op(node, *LINEAR) and not both


def _adds(node: ir.Node) -> bool:
    """Whether it brings in other numbers: a Pad that is not of zeros, a Resize that looks beyond its edge."""
    if g.is_op(node, "Resize"):
        return str(g.attribute(node, "coordinate_transformation_mode", "")) == "tf_crop_and_resize"
    if not g.is_op(node, "Pad") or str(g.attribute(node, "mode", "constant")) != "constant":
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        number = g.array(node.inputs[2])
        return number is None or bool(number.any())
    return bool(g.attribute(node, "value", 0.0))


def _name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return (value and value.name) or ""


def _is_constant(node: ir.Node, index: int) -> bool:
    return g.constant(node.inputs[index]) is not None


def _has_constant(node: ir.Node, index: int) -> bool:
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    return producer is not None and any(_is_constant(producer, at) for at in range(len(producer.inputs)))
