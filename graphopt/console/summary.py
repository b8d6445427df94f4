"""The words for reports: what ``optimize`` did, as rows of text without any layout."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from graphopt.console import precision, pruning, units

if TYPE_CHECKING:
    from graphopt.proof.compare import Bench, Verification
    from graphopt.proof.measure import Comparison
    from graphopt.proof.verdict import Verdict
    from graphopt.report import Report

Fact = tuple[str, str]

RULE_HEAD = ("rule", ">rewrites", ">refusals", "~most frequent reasons")
PASS_HEAD = ("pass", ">time", ">rewrites")

_TOP = 3
_TIME = re.compile(r"\d[\d.e-]*(?= ms\b)")
_LONGEST = 300


def facts(report: Report, verbose: int) -> Iterator[Fact]:
    """The last lines of ``optimize``: what a user wants to know, the most important first."""
    yield from _static(report)
    if report.comparison is not None:
        yield from _measured(report.comparison)
    yield from precision.accuracy(report)
    yield from pruning.facts(report)
    yield from precision.facts(report)
    yield from _rows("not pruned", pruning.cases(report), verbose)
    for label, cases in precision.cases(report):
        yield from _rows(label, cases, verbose)
    lowered = report.accuracy is not None and report.accuracy.achieved
    pruned = any(layer.kept for layer in report.pruned)
    exact = f"before {'pruning' if pruned else 'lower precision'}: " if lowered else ""
    yield report.evidence, exact + report.evidence_detail.removeprefix(f"{report.evidence}: ")
    if report.kept_original:
        yield "kept", f"the original: {report.kept_original}"
    yield from _rows(
        "left out", ((x.rewrite.rule, x.rewrite.value, x.reason) for x in report.left_out), verbose
    )
    yield from _rows("refused", ((x.rule, x.where, x.reason) for x in report.refusals), verbose)
    yield from _once("note", report.notes)
    yield from _once("try", report.suggestions)
    if report.output is not None:
        yield "wrote", " and ".join([report.output, *report.data_files])


def rule_rows(report: Report) -> Iterator[Sequence[str]]:
    """Rewrites and refusals of every rule, with its two most frequent reasons."""
    rewrites = report.rule_counts()
    refusals: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for refusal in report.refusals:
        refusals[refusal.rule][_general(refusal.reason)] += 1
    for rule in sorted({*rewrites, *refusals}, key=lambda rule: (-rewrites[rule], rule)):
        reasons = "; ".join(f"{n}x {reason}" for reason, n in refusals[rule].most_common(2))
        yield rule, f"{rewrites[rule]:,}", f"{refusals[rule].total():,}", reasons


def time_rows(report: Report) -> Iterator[Sequence[str]]:
    """Seconds and rewrites of every pass, the slowest first."""
    for name, spent in sorted(report.pass_seconds.items(), key=lambda item: -item[1]):
        yield name, units.seconds(spent), f"{report.pass_rewrites.get(name, 0):,}"


def _static(report: Report) -> Iterator[Fact]:
    before, after = report.before, report.after
    if before is not None and after is not None:
        yield (
            "nodes",
            _arrow(f"{before.nodes:,}", f"{after.nodes:,}", units.change(before.nodes, after.nodes)),
        )
        yield "size", _sizes(before.file_bytes, after.file_bytes)


def _arrow(before: str, after: str, note: str) -> str:
    return f"{before} -> {after}  ({note})" if note != "same" else f"{after}  (unchanged)"


def verified(found: Verification) -> Iterator[Fact]:
    """Whether two models agree, and where they do not."""
    yield from _once("interface", found.interface, _TOP)
    if found.verdict is not None:
        status, _, detail = found.verdict.summary().partition(": ")
        yield status, detail
        yield from _outputs(found.verdict)
    yield from _once("differs", found.other, _TOP)


def benched(found: Bench) -> Iterator[Fact]:
    """Two models side by side, once per workload."""
    yield "before", found.before.path
    yield "after", found.after.path
    before, after = found.before, found.after
    yield "nodes", _arrow(f"{before.nodes:,}", f"{after.nodes:,}", units.change(before.nodes, after.nodes))
    yield "size", _sizes(before.file_bytes, after.file_bytes)
    for label, old, new, where in (
        ("parameters", before.parameters, after.parameters, ""),
        ("MACs", before.macs, after.macs, f" at {found.comparisons[-1].workload}"),
    ):
        if old is not None and new is not None:
            yield label, _arrow(units.count(old), units.count(new), units.change(old, new)) + where
    for comparison in found.comparisons:
        yield from _measured(comparison)


def _measured(found: Comparison) -> Iterator[Fact]:
    """Latency with its spread and where it was measured, load time, peak memory."""
    before, after = found.before, found.after
    times = [units.seconds(cost.median_ms / 1e3) for cost in (before, after)]
    ratio = f"{found.ratio:.2f}x paired ± {found.noise:.2g}: {found.words}"
    yield "latency", f"{times[0]} -> {times[1]}  ({ratio})"
    threads = units.plural(found.threads, "thread") if found.threads else "default threads"
    spread = " -> ".join(f"{cost.low_ms:.3g}-{cost.high_ms:.3g}" for cost in (before, after))
    yield "", f"{found.workload}; {threads}, {found.target}; quartiles {spread} ms"
    loads = units.seconds(before.load_s), units.seconds(after.load_s)
    yield "load time", _arrow(*loads, units.change(before.load_s, after.load_s))
    if before.peak_bytes is not None and after.peak_bytes is not None:
        yield "memory", _sizes(before.peak_bytes, after.peak_bytes)


def _sizes(before: int, after: int) -> str:
    return _arrow(units.size(before), units.size(after), units.change(before, after))


def _outputs(verdict: Verdict) -> Iterator[Fact]:
    for index, output in enumerate(verdict.outputs):
        parts = [f"error {output.error:.2g} (tolerance {output.tolerance:.2g})"]
        parts += [f"SQNR {output.sqnr_db:.0f} dB"] if output.sqnr_db is not None else []
        parts += [f"agreement {output.agreement:.1%}"] if output.agreement is not None else []
        yield "" if index else "outputs", f"{output.name}: {output.wrong or ', '.join(parts)}"


def _rows(label: str, cases: Iterable[tuple[str, str, str]], verbose: int) -> Iterator[Fact]:
    """Cases of rule, place and reason, grouped; only the largest groups unless asked for more."""
    groups: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for rule, where, reason in cases:
        groups[rule, _general(reason)].append((where, reason))
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    shown = ordered if verbose else ordered[:_TOP]
    yield from _once(label, [_group(rule, general, group) for (rule, general), group in shown])
    if rest := sum(len(group) for _, group in ordered[len(shown) :]):
        yield "", f"and {rest} more; -v shows them"


def _group(rule: str, general: str, group: Sequence[tuple[str, str]]) -> str:
    """One case with its place, or how many there are for the same reason."""
    if len(group) == 1:
        where, reason = group[0]
        return f"{rule} at {where}: {reason}"
    reasons = {reason for _, reason in group}
    if len(reasons) > 1 and _TIME.search(group[0][1]):
        return f"{len(group)}x {rule}, such as {group[0][0]}: {group[0][1]}"
    return f"{len(group)}x {rule}: {reasons.pop() if len(reasons) == 1 else general}"


def _once(label: str, texts: Sequence[str], limit: int | None = None) -> Iterator[Fact]:
    """Rows under one label, which only the first one shows."""
    for index, text in enumerate(texts[:limit]):
        short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        yield "" if index else label, short
    if limit is not None and len(texts) > limit:
        yield "", f"and {len(texts) - limit} more; --json lists them"


def _general(reason: str) -> str:
    """The reason without names, times and large numbers, so that equal causes are counted together."""
    return re.sub(r"'[^']*'|\b\d[\d,]*(?= bytes)|\b\d[\d,]{3,}", "…", _TIME.sub("…", reason))
