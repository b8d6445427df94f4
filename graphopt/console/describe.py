"""The words for an inspection: rows of text, without any layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from graphopt.console import units

if TYPE_CHECKING:
    from graphopt.inspection import Inspection, Port

OP_HEAD = ("operator", ">nodes", ">parameters", ">MACs", ">share")
LAYER_HEAD = ("~layer", "operator", "output", ">parameters", ">MACs")

_TEXT_LIMIT = 200


def facts(found: Inspection) -> Iterator[tuple[str, str]]:
    """What the model is, above the tables."""
    yield "model", found.path
    yield "file", _files(found)
    yield "made by", _origin(found)
    yield "opset", ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    yield from _ports("input", found.inputs, found.overridable)
    yield from _ports("output", found.outputs)
    if found.overridable:
        can = "can" if found.ir_version >= 4 else "cannot"
        listed = units.plural(len(found.overridable), "weight")
        yield "also listed", f"{listed} as inputs, which callers {can} override"
    if found.dynamic_dims:
        yield "dynamic", ", ".join(found.dynamic_dims)
    yield "nodes", _nodes(found)
    yield "parameters", _parameters(found)
    if found.quantization:
        yield "quantized", ", ".join(f"{count}x {op}" for op, count in found.quantization.items())
    yield "MACs", _macs(found)
    if found.doc_string:
        yield "about", _short(found.doc_string)
    for key, value in found.metadata.items():
        yield "metadata", f"{key} = {_short(value)}"


def op_rows(found: Inspection) -> Iterator[Sequence[str]]:
    """The cost of each operator, the dearest first."""
    for cost in found.ops:
        share = _share(cost.macs / found.macs) if cost.macs and found.macs else ""
        yield cost.op, f"{cost.nodes:,}", _number(cost.parameters), _number(cost.macs), share


def layer_rows(found: Inspection) -> Iterator[Sequence[str]]:
    """The cost of each node, in the order of the graph."""
    for layer in found.layers:
        yield layer.name, layer.op, spell(layer.dims), _number(layer.parameters), _number(layer.macs)


def spell(dims: Sequence[int | str | None] | None) -> str:
    """``1×3×224×224``; an unknown dim is ``?``, an unknown rank ``...``, a scalar ``scalar``."""
    if dims is None:
        return "..."
    return "×".join("?" if dim is None else str(dim) for dim in dims) or "scalar"


def _ports(label: str, ports: Sequence[Port], without: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    for port in ports:
        if port.name not in without:
            yield label, f"{port.name}: {port.type}"


def _files(found: Inspection) -> str:
    own = units.size(found.file_bytes)
    others = [f"{path} ({units.size(count)})" for path, count in found.external_files.items()]
    return f"{own}, weights in {', '.join(others)}" if others else own


def _origin(found: Inspection) -> str:
    version = f", version {found.model_version}" if found.model_version else ""
    domain = f", domain {found.domain}" if found.domain else ""
    return f"{found.producer or 'unknown'}{domain}{version}, IR version {found.ir_version}"


def _nodes(found: Inspection) -> str:
    extra = [units.plural(found.subgraphs, "subgraph")] if found.subgraphs else []
    extra += [units.plural(len(found.functions), "function")] if found.functions else []
    return f"{found.nodes:,}" + (f" (with {' and '.join(extra)})" if extra else "")


def _parameters(found: Inspection) -> str:
    shares = [f"{_share(size / found.parameters)} {dtype}" for dtype, size in found.precision.items() if size]
    return f"{units.count(found.parameters)}{' (' + ', '.join(shares) + ')' if shares else ''}"


def _share(part: float) -> str:
    return "<0.1%" if part < 0.0005 else ">99.9%" if 0.9995 <= part < 1 else f"{part:.1%}"


def _macs(found: Inspection) -> str:
    if not found.unknown_macs:
        return units.count(found.macs or 0)
    known = f"at least {units.count(found.macs)}; " if found.macs else ""
    hint = " (fix dynamic dims with --shape)" if found.dynamic_dims else ""
    return f"{known}unknown for {units.plural(found.unknown_macs, 'node')}{hint}"


def _number(number: int | None) -> str:
    return "?" if number is None else units.count(number) if number else ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_LIMIT else f"{line[:_TEXT_LIMIT]}… ({len(text):,} characters)"
