"""The words for pruning: the ledger of what was removed from which layer, and why not from others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from graphopt.console import units

if TYPE_CHECKING:
    from graphopt.report import PrunedLayer, Report

Fact = tuple[str, str]
Case = tuple[str, str, str]

_MOST = 10
_LONGEST_NAME = 18


def facts(report: Report) -> Iterator[Fact]:
    """How many layers each technique changed, and what is left of them."""
    techniques: defaultdict[str, list[PrunedLayer]] = defaultdict(list)
    for layer in report.pruned:
        techniques[layer.technique].append(layer)
    for technique, layers in techniques.items():
        changed = [layer for layer in layers if layer.kept]
        told = [f"{len(changed):,} of {units.plural(len(layers), 'layer')}", *_sums(changed)]
        yield technique, ", ".join(told)


def _sums(layers: Sequence[PrunedLayer]) -> Iterator[str]:
    """Weights and multiply-accumulates of the changed layers, before and after."""
    for noun, pairs in (
        ("weights", [(one.numbers_before, one.numbers_after) for one in layers]),
        ("MACs", [(one.macs_before, one.macs_after) for one in layers]),
    ):
        known = [(before, after) for before, after in pairs if before is not None and after is not None]
        if known:
            before, after = (sum(column) for column in zip(*known, strict=True))
            change = units.change(before, after)
            yield f"their {noun} {units.count(before)} -> {units.count(after)} ({change})"


def cases(report: Report) -> Iterator[Case]:
    """Layers that stayed as they were: technique, name and reason."""
    for layer in report.pruned:
        if layer.reason and not layer.kept:
            yield layer.technique, layer.name, layer.reason


def head(report: Report, verbose: int) -> Sequence[str]:
    """The headings of :func:`rows`."""
    times = [">ms"] if _is_timed(report) else []
    return ("~pruned", *(["op", ">MACs"] if verbose else []), "kept", ">error", ">weights", *times)


def rows(report: Report, verbose: int) -> Iterator[Sequence[str]]:
    """The layers from which something was removed, the largest errors first.

    Unless asked for more there are only ten, on 80 columns.
    """
    changed = [layer for layer in report.pruned if layer.kept]
    changed.sort(key=lambda layer: -(layer.error or 0.0))
    timed = _is_timed(report)
    for layer in changed if verbose else changed[:_MOST]:
        yield (
            layer.name if verbose else _ending(layer.name),
            *([layer.op, _change(layer.macs_before, layer.macs_after)] if verbose else []),
            layer.kept,
            "" if layer.error is None else f"{layer.error:.2%}",
            _change(layer.numbers_before, layer.numbers_after),
            *([_times(layer.ms_before, layer.ms_after)] if timed else []),
        )
    if not verbose and len(changed) > _MOST:
        yield (f"and {len(changed) - _MOST:,} more (-v)", *[""] * (len(head(report, verbose)) - 1))


def _is_timed(report: Report) -> bool:
    return any(layer.kept and layer.ms_after is not None for layer in report.pruned)


def _ending(name: str) -> str:
    name = name.removesuffix("_output_0")
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _change(before: int | None, after: int | None) -> str:
    return "" if before is None or after is None else units.change(before, after)


def _times(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    return f"{before:.2g} -> {after:.2g}"
