"""What a graph says about the values of its inputs: tables they index, masks, lengths, constants they meet.

Every input is followed through the operators that keep its values (Cast, Unsqueeze, Slice …), into subgraphs
and functions, to the operators that give it a meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graphopt import graph as g

# Operators whose output holds values of their first input (or of any input: Concat, Max …).
_KEEPS_VALUES = frozenset(
    {"Cast", "Clip", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"}
)
_KEEPS_VALUES |= {
    "Identity",
    "Optional",
    "OptionalGetElement",
    "Pad",
    "Reshape",
    "SequenceAt",
    "Slice",
    "Split",
}
_KEEPS_VALUES |= {"SplitToSequence", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
_KEEPS_VALUES_OF_ALL = frozenset({"Concat", "Where", "Max", "Min", "SequenceConstruct", "If"})
# (operator, input) → the input that holds the table it indexes.
_INDEXES = {
    ("Gather", 1): 0,
    ("GatherElements", 1): 0,
    ("GatherND", 1): 0,
    ("ScatterElements", 1): 0,
    ("ScatterND", 1): 0,
    ("EmbedLayerNormalization", 0): 2,
    ("EmbedLayerNormalization", 1): 4,
}
# Inputs that are a size, a count, a scale or a shape.
_SIZES = {("ConstantOfShape", 0), ("Loop", 0), ("Reshape", 1), ("Expand", 1), ("Tile", 1), ("TopK", 1)}
_SIZES |= {("Pad", 1), ("Resize", 2), ("Upsample", 1)}
_SIZES |= {("Resize", 3), ("Range", 1), ("Slice", 2), ("Split", 1), ("CenterCropPad", 1), ("AffineGrid", 1)}
_RECURRENT = frozenset({"RNN", "LSTM", "GRU"})
_COMPARES = frozenset({"Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"})
_ELEMENTWISE = frozenset({"Cast", "Mul", "Add", "Sub", "Div", "Identity", "DequantizeLinear"})


@dataclass
class Hint:
    """What is known of one input's values.

    Attributes:
        below: exclusive upper bound, the rows of the smallest table that the input indexes.
        mask: the values are 0 or 1.
        length: the values are lengths of sequences, positive and at most the longest.
        size: the values are sizes, counts or scales.
        constants: the integers that the graph compares the input with.
    """

    below: int | None = None
    mask: bool = False
    length: bool = False
    size: bool = False
    constants: set[int] = field(default_factory=set)


def hints_of(model: ir.Model) -> dict[str, Hint]:
    """The hint of every graph input, by name."""
    return {value.name or "": _follow(model, value) for value in model.graph.inputs}


def mentioned_sizes(model: ir.Model, largest: int = 4096) -> list[int]:
    """Integers from 2 to ``largest`` in the graph: dims of initializers and small integer constants."""
    sizes: set[int] = set()
    for tensor in _constants(model):
        sizes.update(dim for dim in tensor.shape.numpy())
        if tensor.dtype.is_integer() and tensor.size <= 16:
            sizes.update(int(number) for number in tensor.numpy().reshape(-1))
    return sorted(size for size in sizes if 2 <= size <= largest)


def _constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in g.graphs(model):
        values = graph.initializers.values()
        yield from (value.const_value for value in values if value.const_value is not None)
        for node in graph:
            if g.is_op(node, "Constant") and (tensor := g.constant_node_tensor(node)) is not None:
                yield tensor


def _follow(model: ir.Model, start: ir.Value) -> Hint:
    """Collect the hint of one input over everything that its values reach."""
    hint = Hint(mask="mask" in (start.name or "").lower())
    seen: set[ir.Value] = set()
    todo = [start]
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        for node, index in value.uses():
            _note(hint, node, index)
            todo.extend(_carried(model, node, index))
    return hint


def _carried(model: ir.Model, node: ir.Node, index: int) -> list[ir.Value]:
    """The values that hold what input ``index`` of the node holds."""
    function = model.functions.get(node.op_identifier())
    if function is not None:
        return [function.inputs[index]]
    if node.op_type in {"Loop", "Scan"}:
        body = node.attributes["body"].as_graph()
        return [body.inputs[index]] if index < len(body.inputs) else []
    if node.op_type in _KEEPS_VALUES_OF_ALL or (node.op_type in _KEEPS_VALUES and index == 0):
        return list(node.outputs)
    return []


def _note(hint: Hint, node: ir.Node, index: int) -> None:
    """What the use of the value as input ``index`` of the node tells of it."""
    table = _INDEXES.get((node.op_type, index))
    if table is not None:
        _note_below(hint, _rows(node, node.inputs[table]))
    if node.op_type == "OneHot" and index == 0:
        depth = g.constant(node.inputs[1])
        _note_below(hint, int(depth.numpy().reshape(-1)[0]) if depth is not None else None)
    hint.size |= (node.op_type, index) in _SIZES
    hint.length |= node.op_type in _RECURRENT and index == 4
    if node.op_type in _COMPARES:
        _note_compared(hint, g.constant(node.inputs[1 - index]))
    # (1 - mask) · -10000 is how exporters turn a mask into an addend of attention scores.
    hint.mask |= node.op_type == "Sub" and index == 1 and _is_one(node.inputs[0])


def _note_compared(hint: Hint, other: ir.TensorProtocol | None) -> None:
    if other is None or not other.dtype.is_integer() or not 0 < other.size <= 65536:
        return
    numbers = other.numpy()
    if other.size == 1:
        hint.constants.add(int(numbers.reshape(-1)[0]))
    elif numbers.min() >= 0:  # one-hot spelled as Equal with 0, 1, 2, …
        _note_below(hint, int(numbers.max()) + 1)


def _note_below(hint: Hint, rows: int | None) -> None:
    if rows is not None:
        hint.below = rows if hint.below is None else min(hint.below, rows)


def _rows(node: ir.Node, table: ir.Value | None) -> int | None:
    """How many rows the node can index in the table, where that is known."""
    while table is not None and _dims(table) is None:
        producer = table.producer()
        table = producer.inputs[0] if producer is not None and producer.op_type in _ELEMENTWISE else None
    dims = _dims(table) if table is not None else None
    if not dims:
        return None
    if node.op_type.endswith("ND"):
        known = [dim for dim in dims if isinstance(dim, int)]
        return min(known, default=None)
    axis = node.attributes.get_int("axis", 0)
    rows = dims[axis] if -len(dims) <= axis < len(dims) else None
    return rows if isinstance(rows, int) else None


def _dims(value: ir.Value) -> list[Any] | None:
    tensor = g.constant(value)
    if tensor is not None:
        return list(tensor.shape.numpy())
    return list(value.shape) if value.shape is not None else None


def _is_one(value: ir.Value | None) -> bool:
    tensor = g.constant(value)
    return tensor is not None and tensor.size == 1 and bool((tensor.numpy() == 1).all())
