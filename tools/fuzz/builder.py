"""Builds a random model node by node; each node runs in ONNX Runtime at once, or is taken back.

So drawing an operator may be careless about what is allowed: every value comes with what it holds for several
sizes of the symbolic dims, and a node that fails for one of them, or leaves the range of tame numbers, is
rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import WorkerError
from graphopt.runtime.values import Tensor
from graphopt.runtime.worker import Worker
from graphopt.target import REFERENCE
from tools.fuzz import feeds

Array = NDArray[Any]
_LARGEST = {"f": 1e3, "i": 1e5, "u": 1e5}
_MOST_ELEMENTS = 20_000
FUNCTIONS = "local"


class RejectedError(Exception):
    """The node does not run, or its results are of no use."""


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the model: its name and what it holds for each of ``feeds.SIZES``."""

    name: str
    arrays: tuple[Array, ...]
    constant: bool = False

    @property
    def array(self) -> Array:
        """What it holds for the first sizes."""
        return self.arrays[0]

    @property
    def kind(self) -> str:
        """The name of its dtype."""
        return str(self.array.dtype)

    @property
    def rank(self) -> int:
        """The number of dims."""
        return self.array.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims for the first sizes."""
        return self.array.shape

    @property
    def static(self) -> tuple[bool, ...]:
        """Which dims are the same for all sizes."""
        return tuple(len({array.shape[i] for array in self.arrays}) == 1 for i in range(self.rank))

    def info(self, dims: Sequence[int | str | None] | None = None) -> onnx.ValueInfoProto:
        """Its declaration, by default without dims."""
        return helper.make_tensor_value_info(
            self.name, helper.np_dtype_to_tensor_dtype(self.array.dtype), dims
        )


@dataclass
class Scope:
    """A graph under construction and what its nodes can see."""

    values: list[Value]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    in_function: bool = False

    def graph(self, name: str, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """The finished graph."""
        return helper.make_graph(self.nodes, name, self.inputs, outputs, self.initializers)


class Builder:
    """The model under construction; ``scope`` is the innermost graph."""

    def __init__(self, worker: Worker, rng: np.random.Generator, opset: int) -> None:
        self.worker, self.rng, self.opset = worker, rng, opset
        self.scopes = [Scope([])]
        self.functions: list[onnx.FunctionProto] = []
        self.count = 0

    @property
    def scope(self) -> Scope:
        """The innermost graph."""
        return self.scopes[-1]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def choice(self, items: Sequence[Any]) -> Any:
        """One of the items; rejects if there are none."""
        if not items:
            raise RejectedError
        return items[int(self.rng.integers(len(items)))]

    def integer(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, kinds: str = "", where: Callable[[Value], bool] = lambda value: True) -> Value:
        """A visible value of one of these dtypes (any if empty): often the last result, rarely a constant."""
        wanted = kinds.split()
        found = [v for v in self.scope.values if (not wanted or v.kind in wanted) and where(v)]
        computed = [v for v in found if not v.constant]
        found = computed if computed and self.chance(0.95) else found
        return self.choice(found[-1:] if self.chance(0.5) else found)  # type: ignore[no-any-return]

    def fresh(self) -> str:
        """A new name."""
        self.count += 1
        return f"v{self.count}"

    def input(self, kind: str, dims: Sequence[int | str]) -> Value:
        """A new input of the model."""
        info = helper.make_tensor_value_info(
            self.fresh(), helper.np_dtype_to_tensor_dtype(np.dtype(kind)), dims
        )
        index = len(self.scope.inputs)
        arrays = tuple(feeds.of_input(info, sizes, seed + index) for seed, sizes in enumerate(feeds.SIZES))
        self.scope.inputs.append(info)
        return self._visible(Value(info.name, arrays))

    def constant(self, data: Any, *, overridable: bool = False) -> Value:
        """A constant: an initializer or a Constant node, or one of the same content that is there already."""
        array = np.asarray(data)
        same = [v for v in self.scope.values if v.constant and np.array_equal(v.array, array)]
        same = [v for v in same if v.array.dtype == array.dtype]
        if same and not overridable and self.chance(0.6):
            return self.choice(same)  # type: ignore[no-any-return]
        value = Value(self.fresh(), (array,) * len(feeds.SIZES), constant=not overridable)
        tensor = numpy_helper.from_array(array, value.name)
        if not overridable and (self.scope.in_function or self.chance(0.2)):
            self.scope.nodes.append(helper.make_node("Constant", [], [value.name], value=tensor))
        else:
            self.scope.initializers.append(tensor)
        if overridable:
            self.scope.inputs.append(value.info(array.shape))
        return self._visible(value)

    def ints(self, *numbers: int) -> Value:
        """A constant vector of int64."""
        return self.constant(np.array(numbers, np.int64))

    def emit(
        self, op_type: str, *inputs: Value | None, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> Value:
        """Append a node and return its first output.

        Raises:
            RejectedError: it does not run for all sizes, or not with one rank.
        """
        names = [self.fresh() for _ in range(outputs)]
        given = ["" if value is None else value.name for value in inputs]
        while given and not given[-1]:
            given.pop()
        node = helper.make_node(op_type, given, names, domain=domain, **attributes)
        values = self._evaluate(node)
        self.scope.nodes.append(node)
        for value in values:
            self._visible(value)
        return values[0]

    def attempt(self, draw: Callable[[Builder], object]) -> bool:
        """Draw, or leave the graph as it was when a node is rejected."""
        scope, functions = self.scope, len(self.functions)
        lists: list[list[Any]] = [scope.values, scope.nodes, scope.initializers]
        lengths = [len(items) for items in lists]
        try:
            draw(self)
        except RejectedError:
            for items, length in zip(lists, lengths, strict=True):
                del items[length:]
            del self.functions[functions:]
            return False
        return True

    def again(self) -> None:
        """Append a copy of a node of this graph."""
        nodes = [node for node in self.scope.nodes if node.op_type != "Constant"]
        node = onnx.NodeProto()
        node.CopyFrom(self.choice(nodes))
        node.output[:] = [self.fresh() for _ in node.output]
        values = self._evaluate(node)
        self.scope.nodes.append(node)
        self.scope.values.extend(values)

    @contextmanager
    def inside(self, inputs: Sequence[Value], *, in_function: bool = False) -> Iterator[Scope]:
        """A new graph inside the current one; a function's body sees its inputs only."""
        outer = [] if in_function else self.scope.values
        scope = Scope([*outer, *inputs], in_function=in_function or self.scope.in_function)
        scope.inputs = [value.info() for value in inputs]
        self.scopes.append(scope)
        try:
            yield scope
        finally:
            self.scopes.pop()

    def model(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        """A model of this graph with the functions."""
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(FUNCTIONS, 1)] if self.functions else []
        return helper.make_model(graph, opset_imports=imports, functions=self.functions, ir_version=8)

    def _visible(self, value: Value) -> Value:
        self.scope.values.append(value)
        return value

    def _evaluate(self, node: onnx.NodeProto) -> list[Value]:
        """Run a node alone, for all sizes."""
        used = set(needed([node]))
        seen = [value for value in self.scope.values if value.name in used]
        fed = [value for value in seen if not value.constant]
        held = [numpy_helper.from_array(value.array, value.name) for value in seen if value.constant]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
        graph = helper.make_graph([node], "one", [value.info() for value in fed], outputs, held)
        runs = self._run(self.model(graph).SerializeToString(), fed)
        values = [Value(name, tuple(_tame(run[name]) for run in runs)) for name in node.output]
        if any(len({array.ndim for array in value.arrays}) > 1 for value in values):
            raise RejectedError
        return values

    def _run(self, model: bytes, fed: Sequence[Value]) -> list[dict[str, Any]]:
        try:
            session = self.worker.open(model, REFERENCE, 1)
            samples = [{v.name: Tensor.of(v.arrays[i]) for v in fed} for i in range(len(feeds.SIZES))]
            runs = [self.worker.run(session, sample) for sample in samples]
            self.worker.close(session)
        except WorkerError as error:
            raise RejectedError from error
        return runs


def needed(nodes: Sequence[onnx.NodeProto]) -> Iterator[str]:
    """The names that nodes and their subgraphs read from outside."""
    made: set[str] = set()
    for node in nodes:
        yield from (name for name in node.input if name and name not in made)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                own = {item.name for item in (*attribute.g.input, *attribute.g.initializer)}
                inner = (*needed(attribute.g.node), *(output.name for output in attribute.g.output))
                local = own | {name for inside in attribute.g.node for name in inside.output}
                yield from (name for name in inner if name not in local and name not in made)
        made.update(node.output)


def _tame(value: Any) -> Array:
    """A result that later nodes can use: a small tensor of numbers that are not too large."""
    if not isinstance(value, Tensor):
        raise RejectedError
    array = value.numpy()
    limit = _LARGEST.get(array.dtype.kind, np.inf)
    if array.size > _MOST_ELEMENTS or (array.size and not (np.abs(array.astype(float)) < limit).all()):
        raise RejectedError
    return array
