"""Patterns → match → rule: find small shapes of nodes, replace them, and say why a near miss stayed.

A pattern is a tree over values. Its root and inner nodes are operators (:func:`op`), its leaves any
value (:func:`any_`), a constant (:func:`const`) or an input that may be omitted (:func:`maybe`).
The matcher checks what every rule would otherwise have to check: inner values have one consumer, are no
graph output and are captured by no subgraph, and all nodes stand in one graph.

    class MulOne(Rule):
        \"\"\"x · 1 = x.\"\"\"
        pattern = op("Mul", any_("x"), const("one"), commutative=True)
        def rewrite(self, match):
            match.require((match.array("one") == 1).all(), "the factor is not 1")
            return match["x"]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.footprint import constant_bytes, node_bytes
from graphopt.patterns import Op, Pattern, any_, const, maybe, op
from graphopt.pipeline import Pass, Run

if TYPE_CHECKING:
    from graphopt.model import Model

__all__ = ["Match", "Op", "Pattern", "Rule", "RulePass", "any_", "const", "maybe", "op", "rule"]

Array = np.ndarray[Any, Any]


SMALL = 128  # bytes of a constant, with its name, that is not worth leaving a node for


class RefusedError(Exception):
    """Raised inside a rule by :meth:`Match.require`; the driver records the reason."""


@dataclass
class Match:
    """What a pattern bound, and the tools that a rule needs to write its replacement."""

    root: ir.Node
    model: Model
    run: Run
    values: dict[str, ir.Value | None] = field(default_factory=dict)
    nodes: dict[str, ir.Node] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    made: list[ir.Node] = field(default_factory=list)
    constants: list[ir.Value] = field(default_factory=list)

    def __getitem__(self, name: str) -> ir.Value:
        """The value bound to a name that is no optional input."""
        value = self.values[name]
        assert value is not None, f"'{name}' is an omitted input"
        return value

    def get(self, name: str) -> ir.Value | None:
        """The value bound to a name, or ``None`` for an omitted input."""
        return self.values.get(name)

    def node(self, name: str) -> ir.Node:
        """The node bound to a name (its operator type unless the pattern names it)."""
        return self.nodes[name]

    def array(self, name: str) -> Array:
        """The constant bound to a name, as numpy."""
        found = g.array(self.values[name])
        assert found is not None, f"'{name}' is no constant"
        return found

    def require(self, condition: object, why_not: str) -> None:
        """Refuse the rewrite with a reason unless the condition holds.

        Raises:
            RefusedError: always when the condition is false; the driver records the reason.
        """
        if not condition:
            raise RefusedError(why_not)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | Sequence[ir.Attr] = (),
        *,
        domain: str = "",
    ) -> ir.Value:
        """A new node before the root; returns its only output. Attributes are ``ir.Attr`` or plain values.

        The node that makes the replacement inherits the root's name; ONNX Runtime wants names to be unique.
        """
        if isinstance(attributes, Mapping):
            attributes = ir.convenience.convert_attributes(attributes)
        given = list(inputs)
        while given and given[-1] is None:  # an omitted trailing input is left out, not written as ""
            given.pop()
        node = ir.Node(domain, op_type, given, attributes)
        node.outputs[0].name = self.run.names(self.model).fresh(f"{g.output_name(self.root)}_{op_type}")
        self.made.append(node)
        return node.outputs[0]

    def constant(self, data: Array | ir.TensorProtocol, name: str) -> ir.Value:
        """A new constant named after ``name``: an initializer, or in a function body a Constant node."""
        value = self.run.new_constant(self.model, self.root, data, name)
        self.constants.append(value)
        return value

    def growth(self) -> int:
        """Bytes of what is new less those of all that only the root needs; small constants are free."""
        if not any(constant_bytes(value) > SMALL for value in self.constants):
            return 0
        dying = g.dying(self.root)
        used = {value for node in dying for value in node.inputs if value is not None}
        stored = [value for value in used if value.is_initializer() and not value.is_graph_output()]
        freed = [value for value in stored if {use.node for use in value.uses()} <= dying]
        removed = sum(map(node_bytes, dying)) + sum(map(constant_bytes, freed))
        return sum(map(node_bytes, self.made)) + sum(map(constant_bytes, self.constants)) - removed

    # What patterns use.

    def bind(self, name: str | None, value: ir.Value | None) -> bool:
        """Bind a name; a name that is bound already must mean the same value."""
        if name is None:
            return True
        if name in self.values:
            return self.values[name] is value
        self.values[name] = value
        return True

    def add_node(self, name: str, node: ir.Node) -> None:
        """Note a matched node; one in another graph than the root's is a problem."""
        self.nodes[name] = node
        if node.graph is not self.root.graph:
            self.problems.append(f"{g.label(node)} stands in another graph")

    def check_root(self) -> None:
        """Note it when another output of the root than its first is used: a rule replaces the first only."""
        for value in self.root.outputs[1:]:
            if value.uses() or value.is_graph_output():
                self.problems.append(f"its output '{value.name}' is used")

    def check_inner(self, value: ir.Value) -> None:
        """Note what speaks against removing an inner value."""
        if value.is_graph_output():
            self.problems.append(f"the intermediate '{value.name}' is a graph output")
        users = {use.node for use in value.uses()}
        if len(users) > 1:
            self.problems.append(f"the intermediate '{value.name}' has {len(users)} consumers")
        if any(user.graph is not self.root.graph for user in users):
            self.problems.append(f"the intermediate '{value.name}' is captured by a subgraph")

    def snapshot(self) -> tuple[dict[str, ir.Value | None], dict[str, ir.Node], list[str]]:
        """The bindings so far, for :meth:`restore`."""
        return dict(self.values), dict(self.nodes), list(self.problems)

    def restore(self, state: tuple[dict[str, ir.Value | None], dict[str, ir.Node], list[str]]) -> None:
        """Go back to an earlier state after a failed alternative."""
        self.values, self.nodes, self.problems = state


class Rule(ABC):
    """A pattern and its replacement; the docstring of a rule states the equation it implements."""

    name: ClassVar[str] = ""
    pattern: ClassVar[Op]

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Name an unnamed rule after its class: ``ConvBatchNorm`` → ``conv-batch-norm``."""
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = "".join(f"-{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("-")

    @abstractmethod
    def rewrite(self, match: Match) -> ir.Value | None:
        """The value that replaces the root's first output; ``None`` when nothing is to be done.

        Raises:
            RefusedError: through ``match.require``, with the reason why the rule does not apply.
        """

    @classmethod
    def as_pass(cls) -> Pass:
        """A pass of this rule alone, called like it."""
        made: type[RulePass] = type(f"{cls.__name__}Pass", (RulePass,), {"name": cls.name, "rules": (cls,)})
        return made()


@dataclass(frozen=True)
class RulePass(Pass):
    """A pass that drives rules to their fixed point."""

    rules: ClassVar[tuple[type[Rule], ...]] = ()

    def make_rules(self) -> Sequence[Rule]:
        """One instance of each rule; override it to hand a pass's options to its rules."""
        return [rule() for rule in self.rules]

    def apply(self, model: Model, run: Run) -> bool:
        """Apply the rules until none matches; returns whether anything changed."""
        return Driver(self.make_rules(), model, run).drive()


class Driver:
    """The worklist: every node once, then only what a rewrite touched.

    Raises nothing for a loop: after ten rewrites per node of the model it stops and says so.
    """

    def __init__(self, rules: Sequence[Rule], model: Model, run: Run) -> None:
        self.model, self.run = model, run
        self.by_type: dict[tuple[str, str], list[Rule]] = {}
        for rule in rules:
            for op_type in rule.pattern.op_types:
                self.by_type.setdefault((rule.pattern.domain, op_type), []).append(rule)
        self.queue: deque[ir.Node] = deque(n for n in g.nodes(model.ir) if self._rules(n))
        self.queued = set(self.queue)
        self.credit: int | None = None
        self.hits_left = 10 * sum(1 for _ in g.nodes(model.ir)) + 100

    def _rules(self, node: ir.Node) -> list[Rule]:
        return self.by_type.get((node.domain or "", node.op_type), [])

    def drive(self) -> bool:
        """Empty the worklist; returns whether any rule applied."""
        changed = False
        while self.queue:
            node = self.queue.popleft()
            self.queued.discard(node)
            if node.graph is not None and self._try(node):
                changed = True
                self.hits_left -= 1
                if self.hits_left == 0:
                    self.run.journal.note(
                        f"rewriting stopped at its hit limit: rules loop at {g.label(node)}"
                    )
                    break
        return changed

    def _try(self, node: ir.Node) -> bool:
        return any(self._apply(rule, node) for rule in self._rules(node))

    def _apply(self, rule: Rule, node: ir.Node) -> bool:
        match = Match(node, self.model, self.run)
        if not rule.pattern.match_node(node, match):
            return False
        match.check_root()
        try:
            match.require(not match.problems, "; ".join(match.problems))
            self._require_allowed(match, match.nodes.values())
            new = rule.rewrite(match)
            if new is not None and self.run.keep:  # what else would go is known only now
                self._require_allowed(match, g.dying(node, spared=new))
        except (RefusedError, KeyError) as refused:
            self._undo(match)
            self.run.journal.refuse(rule.name, g.label(node), str(refused.args[0]))
            return False
        return new is not None and self._commit(rule, match, new)

    def _require_allowed(self, match: Match, touched: Iterable[ir.Node]) -> None:
        for node in touched:
            match.require(not self.run.keeps(node), f"{g.label(node)} is to be kept (--keep)")

    def _commit(self, rule: Rule, match: Match, new: ir.Value) -> bool:
        old = match.root.outputs[0]
        reason = None if new.producer() in match.made else g.can_replace(old, new)
        reason = reason or self._unaffordable(match)
        if reason is not None:
            self.run.journal.refuse(rule.name, g.label(match.root), reason)
        if reason is not None or not self.run.journal.admit(rule.name, old.name or ""):
            self._undo(match)
            return False
        self._splice(match, old, new)
        return True

    def _unaffordable(self, match: Match) -> str | None:
        """Why what is new does not fit the budget of growth: what it replaces is needed elsewhere."""
        growth = match.growth()
        if growth <= 0:
            return None
        if self.credit is None:
            self.credit = self.run.growth_left(self.model)
        if growth > self.credit:
            return f"the file would grow by {growth:,} bytes: the constants that change are shared"
        self.credit -= growth
        return None

    def _splice(self, match: Match, old: ir.Value, new: ir.Value) -> None:
        assert match.root.graph is not None
        match.root.graph.insert_before(match.root, match.made)
        affected = [*match.made, *old.consumers(), *self._around(match)]
        maker = new.producer()
        if maker is not None and maker in match.made:
            maker.name, match.root.name = match.root.name, None
            g.inherit(old, new)
        else:
            g.replace(old, new)
        self._remove_dead(match.root)
        for node in affected:
            self._push(node)

    def _around(self, match: Match) -> Iterator[ir.Node]:
        for value in match.values.values():
            producer = value.producer() if value is not None else None
            if producer is not None:
                yield producer
            yield from value.consumers() if value is not None else ()

    def _remove_dead(self, root: ir.Node) -> None:
        """Remove the root and what only it kept alive; other dead code is not this driver's business."""
        stack = [root]
        while stack:
            node = stack.pop()
            if node.graph is None or not g.is_dead(node):
                continue
            producers = [p for value in node.inputs if value is not None and (p := value.producer())]
            g.remove(node)
            stack.extend(producers)

    def _undo(self, match: Match) -> None:
        for node in reversed(match.made):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        for value in match.constants:
            self.run.drop_constant(value)

    def _push(self, node: ir.Node) -> None:
        if node.graph is not None and node not in self.queued and self._rules(node):
            self.queued.add(node)
            self.queue.append(node)


Rewriter = Callable[[Match], "ir.Value | None"]


def rule(pattern: Op, *, name: str | None = None) -> Callable[[Rewriter], type[Rule]]:
    """Turn a function ``match -> value`` into a :class:`Rule` (a decorator, for rules of a few lines)."""

    def make(function: Rewriter) -> type[Rule]:
        body = {
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "name": name or function.__name__.replace("_", "-"),
            "pattern": pattern,
            "rewrite": lambda self, match: function(match),
        }
        return type(function.__name__, (Rule,), body)

    return make
