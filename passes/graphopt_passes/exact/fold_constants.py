"""fold-constants: compute now what depends on constants only, and store the results.

All such nodes of a graph are evaluated together, because making a session costs more than running it. Only
the values that other nodes need are stored, and only while the file does not grow past ``max_growth``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import graph as g
from graphopt.errors import WorkerError
from graphopt.footprint import header_bytes, tensor_bytes
from graphopt.pipeline import Pass, Run
from graphopt.runtime.values import Tensor, Value
from graphopt.storage.weights import MappedFile
from graphopt_passes.analysis.divisors import divided_by_zero
from graphopt_passes.exact.constant_cone import (
    Cone,
    Scope,
    foldable,
    frontier,
    is_stored,
    scopes,
    to_ir,
    with_makers,
)
from graphopt_passes.exact.eliminate_dead_code import called_functions, drop_uncalled, remove_dead
from graphopt_passes.exact.growth import Plan, affordable

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.shapes.inference import Shapes

WIDENED = 128
"""Bytes up to which a constant may be stored in a wider type."""
_NAME = "fold-constants"
_FAILED = "ONNX Runtime cannot compute it: "
_LARGE = 64 << 20  # bytes of a value from which on it must not be twice as large as what it is made from
_NODE = 24  # bytes of a Constant node without its name and tensor
# Their values are no tensors, so they fold only together with what turns them into tensors again.
_SEQUENCES = (
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SplitToSequence",
)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes that depend on constants only by initializers (in functions: by Constant nodes).

    Random operators stay, so do quantized weights with what decodes them, and what a caller may override.

    Attributes:
        max_growth: bytes by which the file may grow beyond its size when folding first ran.
    """

    name = _NAME
    max_growth: int = 0

    def apply(self, model: Model, run: Run) -> bool:
        """Fold scope by scope until nothing more folds: what one round computes tells sizes to the next."""
        revision = run.journal.revision
        called = called_functions(model.ir)
        promising = [scope for scope in scopes(model.ir) if foldable(scope, run, set())]
        budget = self._budget(model, run) if promising else 0
        for scope in promising:
            folding = _Folding(model, run, scope, self.max_growth, budget)
            while folding.round():
                pass
            budget = folding.budget
        for scope in scopes(model.ir):
            feed_scalars_to_range(scope, model, run)
        drop_uncalled(model.ir, called)
        return run.journal.revision > revision

    def _budget(self, model: Model, run: Run) -> int:
        """Bytes that may be added now: what any pass saved since the first round may be spent again."""
        return self.max_growth + run.growth_left(model)


def feed_scalars_to_range(scope: Scope, model: Model, run: Run) -> None:
    """Range takes vectors of one element while their shape is unknown, but as constants only scalars."""
    for graph in (scope.graph, *scope.graph.subgraphs()):
        for node in [node for node in graph if g.is_op(node, "Range")]:
            for index, value in enumerate(node.inputs):
                found = g.array(value, limit=1)
                name = g.output_name(node)
                if found is not None and found.ndim and run.journal.admit("scalar-for-range", name):
                    scalar = run.new_constant(model, node, found.reshape(()), f"{name}_{index}")
                    node.replace_input_with(index, scalar)


@dataclass
class _Folding:
    """The rounds of one scope; ``stuck`` holds the nodes that turned out not to fold."""

    model: Model
    run: Run
    scope: Scope
    max_growth: int
    budget: int
    stuck: set[ir.Node] = field(default_factory=set)

    def round(self) -> bool:
        """Fold what can be folded now; returns whether another round may find more."""
        stuck = len(self.stuck)
        candidates = foldable(self.scope, self.run, self.stuck)
        plan = self._afford(self._bounded(candidates), {}) if candidates else Plan()
        results = self._evaluate(with_makers(plan.nodes, candidates), frontier(plan.nodes))
        stored = bool(results) and self._store(plan, results)
        return stored or len(self.stuck) > stuck

    def _refuse(self, node: ir.Node, reason: str) -> None:
        self.stuck.add(node)
        self.run.journal.refuse(_NAME, g.label(node), reason)

    # What may be evaluated.

    def _bounded(self, nodes: list[ir.Node]) -> list[ir.Node]:
        """The nodes whose results have a known, reasonable size; others wait till their inputs are stored."""
        left_out: set[ir.Node | None] = set()
        for node in nodes:
            reason = self._too_large(node)
            if reason is not None:
                self._refuse(node, reason)
            if reason is not None or self._must_wait(node, left_out):
                left_out.add(node)
        return [node for node in nodes if node not in left_out]

    def _must_wait(self, node: ir.Node, left_out: set[ir.Node | None]) -> bool:
        inputs = [value for value in node.inputs if value is not None]
        if g.label(node) in self._failed or any(value.producer() in left_out for value in inputs):
            return True
        unsized = any(self._size(value) is None for value in node.outputs if value.name)
        return unsized and not g.is_op(node, *_SEQUENCES) and not all(map(is_stored, inputs))

    def _too_large(self, node: ir.Node) -> str | None:
        """Why a node is not even evaluated."""
        made = sum(self._size(value) or 0 for value in node.outputs)
        given = sum(self._size(value) or 0 for value in node.inputs if value is not None)
        if made > max(_LARGE, 2 * given):
            return f"its result takes {made:,} bytes and is made from {given:,}"
        if g.is_op(node, "Cast") and made > max(WIDENED, given) and not self.max_growth:
            return f"the constant stays in its narrow type: {given:,} bytes instead of {made:,}"
        return None

    @cached_property
    def _failed(self) -> set[str]:
        """What failed in an earlier round of the pipeline and is not tried again."""
        refusals = self.run.journal.refusals
        return {r.where for r in refusals if r.rule == _NAME and r.reason.startswith(_FAILED)}

    @cached_property
    def _shapes(self) -> Shapes:
        return self.run.shapes(self.model)

    def _size(self, value: ir.Value) -> int | None:
        """The bytes of a tensor, when its type and dims are known."""
        fact = self._shapes.fact(value)
        if fact.dtype in (None, ir.DataType.STRING, ir.DataType.UNDEFINED) or fact.dims is None:
            return None
        bits = fact.dtype.bitwidth
        for dim in fact.dims:
            if not isinstance(dim, int):
                return None
            bits *= dim
        return -(-bits // 8)

    def _header(self, value: ir.Value) -> int:
        """The bytes that storing a value takes besides its data; in a function a node goes with it."""
        node = 0 if self.scope.graph is self.model.ir.graph else _NODE
        return node + header_bytes(value.name or "", self._shapes.rank(value) or 0)

    def _afford(self, nodes: list[ir.Node], actual: dict[ir.Value, int]) -> Plan:
        """What fits into the budget, by the sizes that are known so far."""
        values = [value for node in nodes for value in node.outputs]
        sizes = {v: actual.get(v, self._size(v) or 0) + self._header(v) for v in values}
        plan = affordable(nodes, sizes, self.budget)
        for node, growth in plan.refused.items():
            self._refuse(node, f"the file would grow by {growth:,} bytes (max-growth {self.max_growth:,})")
        return plan

    # Evaluation.

    def _evaluate(self, nodes: list[ir.Node], outputs: list[ir.Value]) -> dict[ir.Value, Value]:
        """The outputs that these nodes compute; nothing when a node fails, which is then stuck."""
        if not nodes:
            return {}
        try:
            return self._compute(nodes, outputs)
        except WorkerError as error:
            self._blame(nodes, error)
            return {}

    def _compute(self, nodes: list[ir.Node], outputs: list[ir.Value]) -> dict[ir.Value, Value]:
        cone = Cone(self.scope, self.model.ir.ir_version)
        results = self.run.worker.evaluate(*cone.build(nodes, outputs))
        return {value: results[cone.name(value)] for value in outputs}

    def _blame(self, nodes: list[ir.Node], error: WorkerError) -> None:
        """Bisect for the shortest beginning that fails: its last node is at fault, and others of its kind."""
        runs, fails = 0, len(nodes)
        while fails - runs > 1:
            middle = (runs + fails) // 2
            try:
                self._compute(nodes[:middle], frontier(nodes[:middle]))
                runs = middle
            except WorkerError as found:
                fails, error = middle, found
        guilty = nodes[fails - 1]
        for node in nodes if "NOT_IMPLEMENTED" in str(error) else ():
            if self._signature(node) == self._signature(guilty):
                self._refuse(node, f"{_FAILED}{error}")
        self._refuse(guilty, f"{_FAILED}{error}")

    def _signature(self, node: ir.Node) -> tuple[object, ...]:
        return node.op_identifier(), tuple(self._shapes.dtype(value) for value in node.inputs)

    # Storing.

    def _store(self, plan: Plan, results: dict[ir.Value, Value]) -> bool:
        """Store what fits into the budget now that all sizes are known; returns whether anything was."""
        opened = cache(MappedFile)
        tensors = {
            value: to_ir(result, value.name or "", opened)
            for value, result in results.items()
            if isinstance(result, Tensor)
        }
        for value in results:
            reason = self._unfit(value, tensors.get(value))
            if reason is not None:
                tensors.pop(value, None)
                self._refuse(_maker(value), reason)
        sizes = {value: tensor_bytes(tensor) for value, tensor in tensors.items()}
        if len(tensors) < len(results) or any(self._size(value) is None for value in tensors):
            plan = self._afford([node for node in plan.nodes if node not in self.stuck], sizes)
        stored = [self._replace(v, tensors[v]) for node in plan.nodes for v in node.outputs if v in tensors]
        self.budget -= plan.growth
        return any(stored)

    @staticmethod
    def _unfit(value: ir.Value, tensor: ir.TensorProtocol | None) -> str | None:
        return f"'{value.name}' is no tensor" if tensor is None else divided_by_zero(value, tensor.numpy)

    def _replace(self, value: ir.Value, tensor: ir.TensorProtocol) -> bool:
        """Let a constant of the same name in the same graph take the value's place."""
        node = _maker(value)
        graph = node.graph
        assert graph is not None
        if not self.run.journal.admit(_NAME, value.name or ""):
            return False
        new = ir.Value(const_value=tensor)
        if self.scope.graph is not self.model.ir.graph:
            constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name=node.name)
            graph.insert_before(node, [constant])
            new = constant.outputs[0]
        g.inherit(value, new)
        if not new.is_graph_output():  # a graph output keeps what it declares
            new.type, new.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        if new.producer() is None:
            graph.register_initializer(new)
        remove_dead(node, self.run)
        return True


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
