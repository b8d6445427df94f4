"""The type of every value as schemas have it: tensors, sequences, optionals; in subgraphs and functions too.

A function is called with the types that its calls have; where these differ, nothing is said of its body.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from graphopt import graph as g
from graphopt_passes.halve.signatures import Signature, inner, signature_of, text_of
from graphopt_passes.halve.stated import is_stated, stated

_SEQUENCE_INPUTS = 1  # a Scan of opset 8 has lengths before its states


class Types:
    """Types by value, as texts of the schemas; empty where nothing is known."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._found: dict[ir.Value, str] = {}
        self.unclear: set[ir.Graph] = set()
        self._called: set[ir.Graph] = set()
        self._walk(model.graph)

    def of(self, value: ir.Value | None) -> str:
        """The type of a value."""
        if value is None:
            return ""
        if value not in self._found:
            tensor = g.constant(value)
            self._found[value] = f"tensor({tensor.dtype.name.lower()})" if tensor else text_of(value.type)
        return self._found[value]

    def _walk(self, graph: ir.Graph) -> None:
        for node in graph:
            for value, text in zip(node.outputs, self._outputs(node), strict=False):
                self._found[value] = text or text_of(value.type)

    def _outputs(self, node: ir.Node) -> Sequence[str]:
        """The types of a node's outputs, after those within it."""
        function = self._model.functions.get(node.op_identifier())
        if function is not None:
            return self._call(node, function)
        if g.has_subgraph(node):
            return self._bodies(node)
        if g.is_op(node, "Constant"):
            return [self.of(node.outputs[0])]
        if is_stated(node):
            return [stated(node, self.of(node.inputs[0]) if node.inputs else "")]
        if g.is_op(node, *_DERIVED):
            return [self._derived(node)]
        found = signature_of(node, self._model)
        return [] if found is None else list(self._bound(node, found))

    def _bound(self, node: ir.Node, found: Signature) -> Iterator[str]:
        known: dict[str, str] = {}
        for index, value in enumerate(node.inputs):
            if text := self.of(value):
                known.setdefault(found.input(index).variable, text)
        for index in range(len(node.outputs)):
            port = found.output(index)
            only = next(iter(port.types)) if len(port.types) == 1 else ""
            yield known.get(port.variable) or only

    def _derived(self, node: ir.Node) -> str:
        first = self.of(node.inputs[0]) if node.inputs else ""
        if not first:
            return ""
        change = _DERIVED[node.op_type]
        return inner(first) if change == "inner" else f"{change}({first})"

    # What holds graphs.

    def _call(self, node: ir.Node, function: ir.Function) -> Sequence[str]:
        body = function.graph
        given = [self.of(value) for value in node.inputs]
        given += [""] * (len(function.inputs) - len(given))
        if body not in self._called:
            self._called.add(body)
            self._found.update(zip(function.inputs, given, strict=False))
            self._walk(body)
        elif given != [self._found[value] for value in function.inputs]:
            self.unclear.update((body, *body.subgraphs()))
        return [] if body in self.unclear else [self.of(value) for value in function.outputs]

    def _bodies(self, node: ir.Node) -> Sequence[str]:
        bodies = list(g.subgraphs(node))
        for body, given in zip(bodies, self._given(node, bodies), strict=True):
            self._found.update(zip(body.inputs, given, strict=False))
            self._walk(body)
        results = [[self.of(value) for value in body.outputs] for body in bodies]
        if g.is_op(node, "If"):
            return [a or b for a, b in zip(*results, strict=False)]
        if g.is_op(node, "Loop"):
            return results[0][1:]
        return results[0] if g.is_op(node, "Scan") else []

    def _given(self, node: ir.Node, bodies: Sequence[ir.Graph]) -> Iterator[list[str]]:
        """The types that the inputs of each body have."""
        for body in bodies:
            if g.is_op(node, "Loop"):
                yield ["tensor(int64)", "tensor(bool)", *map(self.of, node.inputs[2:])]
            elif g.is_op(node, "Scan"):
                yield list(map(self.of, node.inputs[scan_offset(self._model, node) :]))
            else:
                yield [text_of(value.type) for value in body.inputs]


_DERIVED = {
    "SequenceAt": "inner",
    "ConcatFromSequence": "inner",
    "OptionalGetElement": "inner",
    "SequenceConstruct": "seq",
    "SplitToSequence": "seq",
    "Optional": "optional",
}


def is_derived(node: ir.Node) -> bool:
    """Whether the node wraps or unwraps its first input, so that this decides the type of its result."""
    return g.is_op(node, *_DERIVED)


def scan_offset(model: ir.Model, node: ir.Node) -> int:
    """How many inputs a Scan has before its states."""
    assert isinstance(node.graph, ir.Graph)
    return _SEQUENCE_INPUTS if g.opset(model, node.graph) < 9 else 0
