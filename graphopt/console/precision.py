"""The words for lower precision: what it costs in accuracy, and every layer that was considered for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from graphopt.choices import UNBOUNDED
from graphopt.console import units

if TYPE_CHECKING:
    from graphopt.report import AccuracyReport, LayerReport, Report

Fact = tuple[str, str]
Case = tuple[str, str, str]

_HEAD = ("~noisiest layers", "op", ">dB", ">cut", ">range")

_HALVES = ("float16", "bfloat16")
_WORST = 10
_LONGEST_NAME = 22


def accuracy(report: Report) -> Iterator[Fact]:
    """The accuracy against its budget."""
    if report.accuracy is not None:
        yield from _accuracy(report.accuracy)


def facts(report: Report) -> Iterator[Fact]:
    """How much is in lower precision."""
    nodes = [layer for layer in report.layers if layer.bytes_before is None]
    if nodes:
        lowered = sum(map(_is_lowered, nodes))
        share = report.accuracy.int8_macs if report.accuracy is not None else None
        told = f"{lowered:,} of {units.plural(len(nodes), 'layer')}"
        yield (
            (report.precision or "int8").removesuffix("-dynamic"),
            told + ("" if share is None else f", {share:.0%} of the MACs"),
        )
    weights = [layer for layer in report.layers if layer.bytes_before is not None]
    halves = [layer for layer in weights if layer.precision in _HALVES]
    others = [layer for layer in weights if layer not in halves]
    if any(map(_is_lowered, others)):
        yield "weights", _weights(others)
        weights = halves  # scales of integers among them, whose bytes count above, too
    if halves:
        yield "stored", _weights(weights)


def _weights(weights: Sequence[LayerReport]) -> str:
    """How many weights are stored as what, and their bytes before and after."""
    counts = Counter(layer.precision for layer in weights)
    told = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
    before = sum(layer.bytes_before or 0 for layer in weights)
    after = sum(layer.bytes_after or 0 for layer in weights)
    return f"{told}; {units.size(before)} -> {units.size(after)} ({units.change(before, after)})"


def cases(report: Report) -> Iterator[tuple[str, list[Case]]]:
    """Layers that stayed as they were, and those that do not run as one kernel: operator, name and reason."""
    yield (
        "as it was",
        [(one.op, one.name, one.reason) for one in report.layers if one.reason and _is_float(one)],
    )
    yield "not fused", [(one.op, one.name, _unfused(one)) for one in report.layers if one.fused is False]


def _unfused(layer: LayerReport) -> str:
    return layer.reason if layer.reason and _is_lowered(layer) else "runs as separate kernels"


def layer_head(verbose: int) -> Sequence[str]:
    """The headings of :func:`layer_rows`: dB is the SQNR, cut the share of numbers beyond the range."""
    return (*_HEAD, "by", ">ms") if verbose else (*_HEAD, ">ms")


def layer_rows(report: Report, verbose: int) -> Iterator[Sequence[str]]:
    """The layers in lower precision, the noisiest first; unless asked for more only ten, on 80 columns."""
    lowered = [layer for layer in report.layers if _is_lowered(layer) and _tells(layer, verbose)]
    lowered.sort(key=lambda layer: math.inf if layer.sqnr_db is None else layer.sqnr_db)
    for layer in lowered if verbose else lowered[:_WORST]:
        yield (
            layer.name if verbose else _ending(layer.name),
            layer.op,
            "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}",
            "" if layer.clipped is None else f"{layer.clipped:.2%}",
            _range(layer),
            *([layer.method] if verbose else []),
            _change_ms(layer.float_ms, layer.int8_ms),
        )


def _is_lowered(layer: LayerReport) -> bool:
    return layer.precision.startswith(("int", *_HALVES))


def _tells(layer: LayerReport, verbose: int) -> bool:
    """Whether a row would hold more than a name."""
    numbers = (layer.sqnr_db, layer.clipped, layer.low, layer.float_ms, layer.int8_ms)
    return any(number is not None for number in numbers) or bool(verbose and layer.method)


def _is_float(layer: LayerReport) -> bool:
    return layer.precision in ("float32", "float64")


def _ending(name: str) -> str:
    """The end of a long name, where names of layers differ, without the number that exporters add."""
    name = name.removesuffix("_output_0")
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _range(layer: LayerReport) -> str:
    if layer.low is None or layer.high is None:
        return ""
    return f"{_short(layer.low)} to {_short(layer.high)}"


def _short(number: float) -> str:
    """Two digits, or all before the point: ``0.012``, ``4.7``, ``123``."""
    return f"{number:.0f}" if 100 <= abs(number) < 1e6 else f"{number:.2g}"


def _change_ms(before: float | None, after: float | None) -> str:
    if before is None and after is None:
        return ""
    return " -> ".join("?" if ms is None else _short(ms) for ms in (before, after))


def _accuracy(found: AccuracyReport) -> Iterator[Fact]:
    """The drop against its budget, the outputs' noise, and on what evidence."""
    within = f"{found.reason}: {_budget(found)}"
    bound = "" if found.budget == UNBOUNDED else f" within {found.budget}"
    yield "accuracy", within if found.achieved else f"not achieved{bound}: {found.reason}"
    after = found.after
    parts = [] if found.achieved else ["the closest that was tried"]
    parts += _metric(found)
    if after.lost is not None and after.gained is not None:
        parts += [f"{after.lost:,} lost and {after.gained:,} gained of {after.rows:,} labels"]
    if after.metric_error is not None:
        parts += [f"drop uncertain by ±{units.digits(1.96 * after.metric_error)} (95 %)"]
    if after.agreement is not None:
        parts += [f"agreement {after.agreement:.2%}"]
    if after.sqnr_db is not None:
        parts += [f"SQNR {after.sqnr_db:.1f} dB"]
    if after.worst_sample is not None and after.worst_db is not None:
        parts += [f"worst sample {after.worst_sample} with {after.worst_db:.1f} dB"]
    yield "", "; ".join(parts)
    yield "", f"judged on {found.evidence}; calibrated on {_calibration(found)}"


def _metric(found: AccuracyReport) -> Iterator[str]:
    """The metric, where the budget is about something else."""
    before, after = found.before.metric, found.after.metric
    if before is not None and after is not None and found.after.metric_name not in found.reason:
        yield f"{found.after.metric_name} {before:.6g} -> {after:.6g}"


def _budget(found: AccuracyReport) -> str:
    if found.budget == UNBOUNDED:
        return "what was asked for, at any cost; --max-drop bounds it"
    return f"within the budget of {found.budget}"


def _calibration(found: AccuracyReport) -> str:
    if not found.calibration_samples:
        return "none"
    told = units.plural(found.calibration_samples, "sample")
    return f"{told} that are synthetic, so accuracy on real data is not known" if found.synthetic else told
