"""Types, symbolic dims and symbolic integer contents of every value of a model: computed, never guessed.

One forward pass over all graphs. Frequent operators have a rule in :mod:`graphopt.shapes.rules`; the others
ask the C++ inference of their ONNX schema, node by node. What the file claims (``value_info``, the shapes of
graph outputs) is believed only for operators that no schema describes. Nothing is written into the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import graph as g
from graphopt.shapes.rules import RULES, UNKNOWN, At, Fact
from graphopt.shapes.schema import by_schema
from graphopt.shapes.symbols import Dim, Symbols
from graphopt.shapes.views import VIEWS

if TYPE_CHECKING:
    from graphopt.model import Model

VECTOR_LIMIT = 128
_RULES = {**RULES, **VIEWS}
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
_LIMITS = {ir.DataType.INT64: 2**63, ir.DataType.INT32: 2**31}


class Shapes:
    """What is known of every value. Facts stay true while rewrites keep what each value means.

    Values that appear later are inferred from their producer when they are asked for.
    """

    def __init__(self, model: ir.Model, symbols: Symbols | None = None) -> None:
        self.symbols = symbols or Symbols()
        self.model = model
        self._inputs: set[str] = set()
        self._nonzero: set[str] = set()
        self._facts: dict[ir.Value, Fact] = {}
        self._opsets: dict[ir.Graph, int] = {}

    @classmethod
    def infer(cls, model: Model | ir.Model) -> Shapes:
        """Infer everything; the model is only read.

        A run that does not fail proves that some dims are not 0; when there are such, all is inferred again.
        """
        graph = model if isinstance(model, ir.Model) else model.ir
        found = cls(graph)._visit_all()
        return cls(graph, Symbols(frozenset(found._nonzero)))._visit_all() if found._nonzero else found

    def observe(self, node: ir.Node, nonzero: Iterable[Dim]) -> None:
        """Note dims of inputs that are not 0 in a run that passes a node, if the node always runs."""
        if node.graph is self.model.graph:
            for dim in nonzero:
                self._nonzero.update(self.symbols.factors(dim) & self._inputs)

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a tensor, or ``None``."""
        return self.fact(value).dtype

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The dims, or ``None`` for an unknown rank; equal strings are equal dims at run time, maybe 0."""
        return self.fact(value).dims

    def static_dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The dims, or ``None`` unless all are numbers."""
        dims = self.dims(value)
        static = tuple(dim for dim in dims or () if isinstance(dim, int))
        return static if dims is not None and len(static) == len(dims) else None

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of dims, or ``None``."""
        dims = self.fact(value).dims
        return None if dims is None else len(dims)

    def vector(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The elements of a small integer or bool tensor of rank 0 or 1, numbers or symbols."""
        return self.fact(value).vector

    def fact(self, value: ir.Value | None) -> Fact:
        """All that is known of a value."""
        if value is None:
            return UNKNOWN
        found = self._facts.get(value)
        return self._infer(value) if found is None else found

    def at(self, node: ir.Node) -> At:
        """A node with what is known of its inputs."""
        return At(node, [self.fact(value) for value in node.inputs], self, self._opset(node))

    def _visit_all(self) -> Shapes:
        for graph in g.graphs(self.model):
            self.visit(graph)
        return self

    def visit(self, graph: ir.Graph) -> None:
        """Infer the nodes of a graph in order; what is known already stays."""
        for node in graph:
            if node.outputs and node.outputs[0] not in self._facts:
                self._node(node)

    def _infer(self, value: ir.Value) -> Fact:
        producer = value.producer()
        if producer is None:
            self._facts[value] = fact = self._source(value)
            return fact
        self._node(producer)
        return self._facts[value]

    def _source(self, value: ir.Value) -> Fact:
        """An initializer or the input of a graph; only the main graph's inputs keep what they declare."""
        tensor = g.constant(value)
        if tensor is not None:
            return self._constant(tensor)
        declared = self._declared(value)
        if value.graph is self.model.graph and value.shape is not None:
            return self._complete(Fact(declared.dtype, self._input_dims(value)))
        return Fact(declared.dtype)

    def _input_dims(self, value: ir.Value) -> tuple[Dim, ...]:
        assert value.shape is not None
        dims: list[Dim] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int) and dim >= 0:
                dims.append(dim)
            else:
                text = None if isinstance(dim, int) else dim.value
                dims.append(self.symbols.declared(text, f"{value.name}.{axis}"))
        self._inputs.update(dim for dim in dims if isinstance(dim, str))
        return tuple(dims)

    def _constant(self, tensor: ir.TensorProtocol) -> Fact:
        dims = tuple(d for d in tensor.shape if isinstance(d, int))
        small = len(dims) <= 1 and tensor.size <= VECTOR_LIMIT and tensor.dtype in INTEGERS
        return Fact(tensor.dtype, dims, tuple(map(int, tensor.numpy().reshape(-1))) if small else None)

    def _declared(self, value: ir.Value) -> Fact:
        """What the file says of a value that nothing else describes: its type, and dims that are numbers."""
        dtype = value.type.dtype if isinstance(value.type, ir.TensorType) else None
        if value.shape is None:
            return Fact(dtype)
        fresh = self.symbols.fresh
        return Fact(dtype, tuple(d if isinstance(d, int) and d >= 0 else fresh() for d in value.shape))

    def _node(self, node: ir.Node) -> None:
        self._facts.update(dict.fromkeys(node.outputs, UNKNOWN))  # ends a cycle
        facts = self._computed(node)
        for index, output in enumerate(node.outputs):
            if facts is None:
                fact = self._declared(output)
            else:
                fact = facts[index] if index < len(facts) else UNKNOWN
            self._facts[output] = self._complete(fact)

    def _computed(self, node: ir.Node) -> Sequence[Fact] | None:
        """The facts of a node's outputs; ``None`` when no rule, function body or schema describes it."""
        if g.is_op(node, "Constant"):
            tensor = g.constant_node_tensor(node)
            return [UNKNOWN if tensor is None else self._constant(tensor)]
        at = self.at(node)
        function = self.model.functions.get(node.op_identifier())
        if function is not None:
            return self._called(function, at.inputs)
        rule = _RULES.get(node.op_type) if node.domain in g.DEFAULT_DOMAINS else None
        try:
            facts = rule(at) if rule is not None else None
        except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
            facts = None  # an invalid node, or a parameter of a function
        return by_schema(at) if facts is None else facts

    def _called(self, function: ir.Function, inputs: Sequence[Fact]) -> Sequence[Fact]:
        """The outputs of a function for the inputs of one call."""
        inner = Shapes(self.model, self.symbols)
        given = [*inputs, *[UNKNOWN] * (len(function.inputs) - len(inputs))]
        inner._facts.update(zip(function.inputs, given, strict=False))
        inner.visit(function.graph)
        return [inner.fact(value) for value in function.outputs]

    def _complete(self, fact: Fact) -> Fact:
        """Give every element of a small integer tensor a symbol, so that equal ones are seen later."""
        if fact.dims is not None and not all(map(self.symbols.is_dim, fact.dims)):
            fact = fact._replace(dims=tuple(map(self._as_dim, fact.dims)))
        if fact.vector is not None and fact.dtype in _LIMITS:
            fact = fact._replace(vector=tuple(self._as_element(e, _LIMITS[fact.dtype]) for e in fact.vector))
        if fact.vector is not None or fact.dims is None or fact.dtype not in INTEGERS or len(fact.dims) > 1:
            return fact
        size = fact.dims[0] if fact.dims else 1
        if not isinstance(size, int) or size > VECTOR_LIMIT:
            return fact
        return fact._replace(vector=tuple(self.symbols.fresh(signed=True) for _ in range(size)))

    def _as_dim(self, dim: Dim) -> Dim:
        """A dim that arithmetic could not prove to be none below 0, under a name of its own."""
        return dim if self.symbols.is_dim(dim) else self.symbols.function("dim", dim, signed=False)

    def _as_element(self, element: Dim, limit: int) -> Dim:
        """An element that does not fit its type wrapped around to some other number."""
        fits = not isinstance(element, int) or -limit <= element < limit
        return element if fits else self.symbols.fresh(signed=True)

    def _opset(self, node: ir.Node) -> int:
        graph = node.graph
        assert graph is not None
        if graph not in self._opsets:
            self._opsets[graph] = g.opset(self.model, graph)
        return self._opsets[graph]
