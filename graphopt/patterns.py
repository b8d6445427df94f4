"""Patterns: small trees over values, matched against the graph from a root node upwards.

The root and inner nodes are operators (:func:`op`), the leaves any value (:func:`any_`), a constant
(:func:`const`) or an input that may be omitted (:func:`maybe`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import graph as g

if TYPE_CHECKING:
    from graphopt.rewrite import Match


@dataclass(frozen=True)
class Pattern:
    """A leaf: any value, optionally bound to a name; see :func:`any_`, :func:`const`, :func:`maybe`."""

    name: str | None = None
    optional: bool = False
    constant: bool = False

    def match(self, value: ir.Value | None, match: Match) -> bool:
        """Bind the value in ``match`` if it fits."""
        if value is None and not self.optional:
            return False
        if self.constant and value is not None and g.constant(value) is None:
            return False
        return match.bind(self.name, value)


@dataclass(frozen=True)
class Op(Pattern):
    """An operator with patterns for its inputs; see :func:`op`."""

    op_types: tuple[str, ...] = ()
    inputs: tuple[Pattern, ...] = ()
    domain: str = ""
    commutative: bool = False
    node_name: str | None = None
    more: bool = False

    def match(self, value: ir.Value | None, match: Match) -> bool:
        """Match an inner value: the node that makes it, and that nothing else needs it."""
        node = value.producer() if value is not None else None
        if value is None or node is None or not self.match_node(node, match) or node.outputs[0] is not value:
            return False
        match.check_inner(value)
        return match.bind(self.name, value)

    def match_node(self, node: ir.Node, match: Match) -> bool:
        """Match a node and, below it, its inputs in any order that the operator allows."""
        if node.op_type not in self.op_types or (node.domain or "") != self.domain:
            return False
        if len(node.inputs) > len(self.inputs) and not self.more:
            return False
        given = [*node.inputs, *[None] * len(self.inputs)][: len(self.inputs)]
        return any(self._match_inputs(order, node, match) for order in self._orders(given))

    def _orders(self, given: list[ir.Value | None]) -> Iterator[list[ir.Value | None]]:
        yield given
        if self.commutative:
            yield given[::-1]

    def _match_inputs(self, given: list[ir.Value | None], node: ir.Node, match: Match) -> bool:
        before = match.snapshot()
        match.add_node(self.node_name or self.op_types[0], node)
        if all(pattern.match(value, match) for pattern, value in zip(self.inputs, given, strict=True)):
            return True
        match.restore(before)
        return False


def op(  # noqa: PLR0913
    op_types: str | Sequence[str],
    *inputs: Pattern,
    name: str | None = None,
    node: str | None = None,
    domain: str = "",
    commutative: bool = False,
    more: bool = False,
) -> Op:
    """An operator pattern.

    Args:
        op_types: one operator type, or several that the rule treats alike.
        inputs: one pattern per input; trailing inputs that a node may lack are ``maybe`` patterns.
        name: binds the node's first output.
        node: binds the node itself; by default under its (first) operator type.
        domain: the operator's domain; empty for the ONNX default.
        commutative: also try the inputs in reverse order.
        more: further inputs may follow, whatever they are.
    """
    types = (op_types,) if isinstance(op_types, str) else tuple(op_types)
    return Op(name, False, False, types, inputs, domain, commutative, node, more)


def any_(name: str) -> Pattern:
    """Any value that is present."""
    return Pattern(name)


def const(name: str, *, optional: bool = False) -> Pattern:
    """A constant: a Constant node's value, or an initializer that no caller can override."""
    return Pattern(name, optional, True)


def maybe(name: str) -> Pattern:
    """A value, or an omitted input (bound to ``None``)."""
    return Pattern(name, True)
