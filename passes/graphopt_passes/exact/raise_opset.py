"""raise-opset: write a model in a newer opset, such as one that quantizes per channel (13).

Every operator is taken from the version that it has to the next until the opset wanted. Where two versions
differ in the types that they take, or in what may be omitted, nothing is to be done; this is read from the
schemas. Where more differs, :mod:`graphopt_passes.exact.opset_adapters` rewrites the node. If one node cannot
follow, the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from graphopt import graph as g
from graphopt.legacy import as_ir4
from graphopt.pipeline import Pass, Run
from graphopt.rewrite import RefusedError
from graphopt_passes.exact.opset_adapters import ADAPTERS, Place

if TYPE_CHECKING:
    from graphopt.model import Model

RULE = "raise-opset"
_FIRST_SOURCE = 7  # before it, broadcasting was an attribute
_FIRST_GOAL = 11  # Upsample becomes a Resize, which has said since then how it rounds


@dataclass(frozen=True)
class RaiseOpset(Pass):
    """Raise the opset of the default domain and adapt every operator that has changed since."""

    name = RULE
    to: int = 13

    def apply(self, model: Model, run: Run) -> bool:
        """Raise all of the model, or nothing."""
        before = _below(model.ir, self.to)
        reason = raised(model, run, self.to)
        if reason is not None:
            run.journal.refuse(self.name, "the model", reason)
        return before and reason is None


def raised(model: Model, run: Run, to: int) -> str | None:
    """Raise the default domain's opset of a model and its functions in place; other domains stay.

    ``model.ir`` is replaced, so nodes and values that were taken from it are not those of the result; its
    names are kept. The journal counts one rewrite and notes it.

    Args:
        model: stays as it is if it cannot be raised.
        run: where the rewrite is recorded.
        to: the opset, 11 or later.

    Returns:
        ``None`` if the opset is at least ``to`` now, else why not.
    """
    if not _below(model.ir, to):
        return None
    version = min(_versions(model.ir))
    if version < _FIRST_SOURCE:
        return f"its opset is {version}; before opset 7 operators broadcast by attributes"
    if not _FIRST_GOAL <= to <= onnx.defs.onnx_opset_version():
        return f"to opset {_FIRST_GOAL} to {onnx.defs.onnx_opset_version()} only, not {to}"
    trial = model.clone()
    try:
        with as_ir4(trial, run.journal):
            _raise_all(trial, run, to)
    except RefusedError as refused:
        run.forget()
        return str(refused)
    run.forget()
    if not run.journal.admit(RULE, f"opset {to}"):
        return "this rewrite is left out"
    run.journal.note(f"opset {version} of domain '' became {to}")
    model.ir = trial.ir
    return None


def _versions(model: ir.Model) -> list[int]:
    """The default domain's opset of the main graph and of each function, where they import it."""
    return [version for imports in _imports(model) if (version := imports.get("")) is not None]


def _imports(model: ir.Model) -> list[dict[str, int]]:
    return [graph.opset_imports for graph in (model.graph, *(f.graph for f in model.functions.values()))]


def _below(model: ir.Model, to: int) -> bool:
    return any(version < to for version in _versions(model))


def _raise_all(model: Model, run: Run, to: int) -> None:
    run.shapes(model)  # while all of it is of one opset
    for graph in list(g.graphs(model.ir)):
        version = g.opset(model.ir, graph)
        for node in list(graph):
            if node.domain in g.DEFAULT_DOMAINS and node.op_identifier() not in model.ir.functions:
                _raise_node(Place(node, model, run), version, to)
    for imports in _imports(model.ir):
        if "" in imports:
            imports[""] = max(to, imports[""])


def _raise_node(at: Place, version: int, to: int) -> None:
    """Take one node from version to version of its operator, which may become another one."""
    try:
        while (step := _step(at.node.op_type, version, to)) is not None:
            old, new = step
            if not (adapter := ADAPTERS.get((new.name, new.since_version))):
                at.require(not new.deprecated and is_widened(old, new), _no_way(new))
            else:
                at.require(not at.run.keeps(at.node), "it is to be kept (--keep), and would have to change")
                adapter(at)
            version = new.since_version
    except (RefusedError, KeyError) as refused:
        raise RefusedError(f"{g.label(at.node)}: {refused.args[0]}") from refused


def _step(op_type: str, version: int, to: int) -> tuple[OpSchema, OpSchema] | None:
    """The schema in force at an opset and the next one until ``to``, if there is one."""
    history = _history().get(op_type, [])
    passed = [schema for schema in history if schema.since_version <= version]
    if not passed:
        raise RefusedError(f"onnx knows no {op_type} of opset {version}")
    coming = [schema for schema in history if version < schema.since_version <= to]
    return (passed[-1], coming[0]) if coming else None


@cache
def _history() -> dict[str, list[OpSchema]]:
    """All versions of the operators of the default domain, the oldest first."""
    found: dict[str, list[OpSchema]] = {}
    for schema in sorted(onnx.defs.get_all_schemas_with_history(), key=lambda s: s.since_version):
        if schema.domain == "":
            found.setdefault(schema.name, []).append(schema)
    return found


def _no_way(new: OpSchema) -> str:
    return f"what changed in opset {new.since_version} has no equal there that graphopt knows"


def is_widened(old: OpSchema, new: OpSchema) -> bool:
    """Whether the new version takes all that the old one took and differs in types and optionality only."""
    return (
        _fits(old.inputs, new.inputs)
        and _fits(old.outputs, new.outputs)
        and old.attributes.keys() == new.attributes.keys()
        and all(_same(found, new.attributes[name]) for name, found in old.attributes.items())
    )


def _fits(old: Sequence[OpSchema.FormalParameter], new: Sequence[OpSchema.FormalParameter]) -> bool:
    return all(a and b and _takes(b, a) for a, b in zip_longest(old, new))


def _takes(new: OpSchema.FormalParameter, old: OpSchema.FormalParameter) -> bool:
    option = OpSchema.FormalParameterOption
    relaxed = old.option is option.Single and new.option is option.Optional
    arity = new.min_arity <= old.min_arity and new.is_homogeneous == old.is_homogeneous
    return (old.option is new.option or relaxed) and arity and set(old.types) <= set(new.types)


def _same(old: OpSchema.Attribute, new: OpSchema.Attribute) -> bool:
    equal = bool(old.default_value == new.default_value)
    return old.type == new.type and equal and (old.required or not new.required)
