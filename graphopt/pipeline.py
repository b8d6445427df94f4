"""Passes, and the only loop that runs them."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.journal import Journal
from graphopt.legacy import as_ir4
from graphopt.storage.spill import Spill

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.rewrite import Rule
    from graphopt.runtime.worker import Worker
    from graphopt.shapes.inference import Shapes
    from graphopt.target import Target


@dataclass
class Run:
    """What a pass may ask for besides the model: the target, the journal, a worker, fresh names.

    Attributes:
        target: the execution provider that the result is for.
        worker: evaluates constants in ONNX Runtime, in a child process.
        journal: counts rewrites and keeps refusals and notes.
        keep: operator types and node names that no rewrite may touch.
        spill: where large new constants lie.
    """

    target: Target
    worker: Worker
    journal: Journal = field(default_factory=Journal)
    keep: frozenset[str] = frozenset()
    spill: Spill = field(default_factory=Spill)
    _names: g.Names | None = None
    _shapes: tuple[Model, int, Shapes] | None = None

    def keeps(self, node: ir.Node) -> bool:
        """Whether the user wants this node, or one in its subgraphs, left alone: by operator type or name.

        A kept node is neither changed nor removed, nor left without use by a rule.
        """
        return bool(self.keep) and any(map(self._names_node, _with_inner(node)))

    def _names_node(self, node: ir.Node) -> bool:
        return node.op_type in self.keep or node.name in self.keep

    def names(self, model: Model) -> g.Names:
        """The names in use; fresh ones are reserved as they are handed out."""
        if self._names is None:
            self._names = g.Names(model.ir)
        return self._names

    def shapes(self, model: Model) -> Shapes:
        """Types, dims and known integer values of every value, inferred once per pass.

        Rewrites keep what a value means, so the facts stay true during the pass; new values are inferred when
        they are asked for.
        """
        from graphopt.shapes.inference import Shapes

        if self._shapes is None or self._shapes[0] is not model:
            self._shapes = (model, self.journal.revision, Shapes.infer(model))
        return self._shapes[2]

    def forget_shapes(self) -> None:
        """Infer shapes anew when asked again, if rewrites have happened since they were inferred."""
        if self._shapes is not None and self._shapes[1] != self.journal.revision:
            self._shapes = None

    def forget(self) -> None:
        """Drop what is known of the model's names and shapes; for a pass that replaced ``model.ir``."""
        self._names = self._shapes = None

    def growth_left(self, model: Model) -> int:
        """Bytes by which the file may grow now and still not exceed the original's size."""
        return (self.journal.file_size or 0) - model.file_size()

    def new_constant(
        self, model: Model, at: ir.Node, data: np.ndarray[Any, Any] | ir.TensorProtocol, name: str
    ) -> ir.Value:
        """A new constant that a node can see: an initializer, or inside a function a Constant node.

        Raises:
            SystemRefusedError: a large one is kept in a temporary file, and the disk is full.
        """
        fresh = self.names(model).fresh(name)
        tensor = self.spill.keep(ir.Tensor(data, name=fresh) if isinstance(data, np.ndarray) else data)
        if at.graph in g.function_graphs(model.ir):
            node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name=fresh)
            node.outputs[0].name = fresh
            at.graph.insert_before(at, [node])
            return node.outputs[0]
        value = ir.Value(
            name=fresh,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        model.ir.graph.register_initializer(value)
        return value

    @staticmethod
    def drop_constant(value: ir.Value) -> None:
        """Take back an unused constant that :meth:`new_constant` made."""
        producer = value.producer()
        if producer is not None:
            g.remove(producer)
        elif value.graph is not None:
            del value.graph.initializers[value.name or ""]


def _with_inner(node: ir.Node) -> Iterator[ir.Node]:
    yield node
    for subgraph in g.subgraphs(node):
        yield from subgraph.all_nodes()


@dataclass(frozen=True)
class Pass(ABC):
    """One idea that changes a model. Subclasses are frozen dataclasses whose fields are the options.

    Attributes:
        name: how the command line and reports call the pass.
        exact: an exact pass keeps outputs within rounding; a lossy one is bounded by the accuracy budget.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True

    @abstractmethod
    def apply(self, model: Model, run: Run) -> bool:
        """Change the model in place; returns whether it changed.

        Every rewrite asks ``run.journal.admit`` first, so that bisection can leave it out.
        """

    def __str__(self) -> str:
        """The pass as the command line spells it: ``fold-constants{max-growth=0}``; defaults are left out."""
        given = [
            f"{f.name.replace('_', '-')}={_spell(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"{self.name}{{{','.join(given)}}}" if given else self.name


def _spell(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


Observer = Callable[[Pass, "Model", "Run", bool], None]


class Pipeline:
    """Passes in order, repeated until a whole round changes nothing; a bare rule counts as a pass.

    Example:
        >>> Pipeline([FoldConstants(), FuseConvBn()])(model, run)  # doctest: +SKIP
    """

    max_rounds: ClassVar[int] = 10

    def __init__(self, passes: Sequence[Pass | type[Rule]], observers: Sequence[Observer] = ()) -> None:
        self.passes = [step if isinstance(step, Pass) else step.as_pass() for step in passes]
        self.observers = list(observers)

    def __call__(self, model: Model, run: Run) -> bool:
        """Run the passes on the model in place; returns whether anything changed.

        After every pass the observers are called with ``(pass, model, run, changed)``: they print or check.
        """
        if run.journal.file_size is None:
            run.journal.file_size = model.file_size()
        with as_ir4(model, run.journal):
            rounds = sum(
                1 for _ in takewhile(bool, (self._round(model, run) for _ in range(self.max_rounds)))
            )
        if rounds == self.max_rounds:
            run.journal.note(f"passes still changed the model after {rounds} rounds")
        return rounds > 0

    def _round(self, model: Model, run: Run) -> bool:
        return any([self._step(step, model, run) for step in self.passes])

    def _step(self, step: Pass, model: Model, run: Run) -> bool:
        start, revision = time.perf_counter(), run.journal.revision
        run.forget_shapes()
        changed = step.apply(model, run)
        run.journal.seconds[step.name] = run.journal.seconds.get(step.name, 0.0) + time.perf_counter() - start
        run.journal.passes[step.name] += run.journal.revision - revision
        for observer in self.observers:
            observer(step, model, run, changed)
        return changed

    def __str__(self) -> str:
        """The pipeline as the command line spells it."""
        return ",".join(map(str, self.passes))
