"""Finds passes by name: the table of ``graphopt_passes``, and plug-ins of other packages.

Only the outermost layer (``optimize`` and the command line) asks here, so that the framework imports no pass.
A plug-in is an entry point of the group ``graphopt.passes`` that names a
:class:`~graphopt.pipeline.Pass` subclass.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, get_type_hints

from graphopt.errors import UsageError
from graphopt.pipeline import Pass, Pipeline

if TYPE_CHECKING:
    from graphopt.precision import Lowering

GROUP = "graphopt.passes"


@dataclass(frozen=True)
class Entry:
    """A pass that can be named: where its class is and one line about it for users."""

    name: str
    target: str
    summary: str
    source: str = "graphopt"

    def load(self) -> type[Pass]:
        """Import the class of the pass.

        Raises:
            UsageError: when a plug-in cannot be imported or is no pass.
        """
        module, _, attribute = self.target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"pass '{self.name}' of {self.source} cannot be imported: {error}") from error
        if not (isinstance(found, type) and issubclass(found, Pass)):
            raise UsageError(f"'{self.target}' of {self.source} is no graphopt Pass")
        return found


def builtin() -> dict[str, Entry]:
    """The passes that ship with graphopt, in the order of their table."""
    table = importlib.import_module("graphopt_passes").PASSES
    return {name: Entry(name, target, summary) for name, (target, summary) in table.items()}


def plugins() -> dict[str, Entry]:
    """The passes that other installed packages offer."""
    return {entry.name: _from_entry_point(entry) for entry in entry_points(group=GROUP)}


def _from_entry_point(entry: EntryPoint) -> Entry:
    source = entry.dist.name if entry.dist is not None else "an installed package"
    return Entry(entry.name, entry.value, f"from {source}", source)


def find(name: str) -> type[Pass]:
    """The class of the pass with this name.

    Raises:
        UsageError: for an unknown name, with the closest known ones.
    """
    entry = builtin().get(name) or plugins().get(name)
    if entry is None:
        raise UsageError(f"unknown pass '{name}'{_suggest(name)}; 'graphopt passes' lists them")
    return entry.load()


def _suggest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, [*builtin(), *plugins()], n=2)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def plan(name: str = "default") -> Pipeline:
    """The pipeline of a named plan: a literal list in ``graphopt_passes.plans``."""
    return parse(",".join(importlib.import_module("graphopt_passes.plans").PLANS[name]))


def precision(name: str) -> Lowering:
    """What lowers the precision of models to ``name``.

    Raises:
        UsageError: there is no such precision.
    """
    return _lowering("precision", name, importlib.import_module("graphopt_passes").PRECISIONS)


def pruning(name: str) -> Lowering:
    """What removes channels, ranks, weights, … from models.

    Raises:
        UsageError: there is no such stage.
    """
    return _lowering("pruning", name, importlib.import_module("graphopt_passes").PRUNINGS)


def store(name: str) -> Lowering:
    """What stores the weights of models as ``name``.

    Raises:
        UsageError: there is no such way to store them.
    """
    return _lowering("store", name, importlib.import_module("graphopt_passes").STORES)


def _lowering(what: str, name: str, table: Mapping[str, str]) -> Lowering:
    if name not in table:
        raise UsageError(f"unknown {what} '{name}'; choose one of {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    found: Lowering = getattr(importlib.import_module(module), attribute)
    return found


def parse(text: str) -> Pipeline:
    """A pipeline from its spelling, ``fold-constants{max-growth=0},fuse-conv-bn``.

    Raises:
        UsageError: for an unknown pass or option, or a value of the wrong type.
    """
    return Pipeline([make(name, options) for name, options in _split(text)])


def _split(text: str) -> Iterator[tuple[str, str]]:
    token = re.compile(r"\s*([\w-]+)\s*(?:\{([^{}]*)\})?\s*(,|$)")
    at = 0
    while at < len(text):
        found = token.match(text, at)
        if found is None:
            raise UsageError(f"cannot read passes from '{text[at:]}'; write 'name{{option=value}},name'")
        yield found[1], found[2] or ""
        at = found.end()


def make(name: str, options: str = "") -> Pass:
    """One pass from its name and ``option=value,…``."""
    cls = find(name)
    given = [item.partition("=") for item in options.split(",") if item.strip()]
    return cls(**dict(_option(cls, key.strip(), value.strip()) for key, _, value in given))


def options_of(cls: type[Pass]) -> Sequence[dataclasses.Field[Any]]:
    """The fields of a pass that are its options."""
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def _option(cls: type[Pass], key: str, text: str) -> tuple[str, object]:
    field = key.replace("-", "_")
    if field not in {f.name for f in options_of(cls)}:
        known = ", ".join(f.name.replace("_", "-") for f in options_of(cls)) or "none"
        raise UsageError(f"pass '{cls.name}' has no option '{key}' (it has: {known})")
    kind = get_type_hints(cls)[field]
    try:
        return field, _convert(kind, text)
    except ValueError:
        raise UsageError(
            f"option '{key}' of pass '{cls.name}' must be {kind.__name__}, not '{text}'"
        ) from None


def _convert(kind: type, text: str) -> object:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", ""):
            raise ValueError(text)
        return text.lower() in ("true", "1", "")
    return kind(text)
