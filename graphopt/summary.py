"""The words for reports: what ``optimize`` did, as rows of text without any layout."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from graphopt import units

if TYPE_CHECKING:
    from graphopt.report import Report

Fact = tuple[str, str]

RULE_HEAD = ("rule", ">rewrites", ">refusals", "most frequent reasons")
PASS_HEAD = ("pass", ">time", ">rewrites")

_TOP = 3


def facts(report: Report, verbose: int) -> Iterator[Fact]:
    """The last lines of ``optimize``: what a user wants to know, the most important first."""
    yield from _static(report)
    if report.comparison is not None:
        pass
    yield report.evidence, report.evidence_detail
    if report.kept_original:
        yield "kept", f"the original: {report.kept_original}"
    yield from _rows(
        "left out", ((x.rewrite.rule, x.rewrite.value, x.reason) for x in report.left_out), verbose
    )
    yield from _rows("refused", ((x.rule, x.where, x.reason) for x in report.refusals), verbose)
    yield from (("note", text) for text in report.notes)
    yield from (("try", text) for text in report.suggestions)
    if report.output is not None:
        yield "wrote", report.output


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
        old, new = before.file_bytes, after.file_bytes
        yield "size", _arrow(units.size(old), units.size(new), units.change(old, new))


def _arrow(before: str, after: str, note: str) -> str:
    return f"{before} -> {after}  ({note})" if note != "same" else f"{after}  (unchanged)"


def _rows(label: str, cases: Iterable[tuple[str, str, str]], verbose: int) -> Iterator[Fact]:
    """Cases of rule, place and reason, grouped; only the largest groups unless asked for more."""
    groups = Counter[tuple[str, str]]()
    examples: dict[tuple[str, str], tuple[str, str]] = {}
    for rule, where, reason in cases:
        groups[rule, _general(reason)] += 1
        examples.setdefault((rule, _general(reason)), (where, reason))
    shown = groups.most_common(None if verbose else _TOP)
    for (rule, reason), count in shown:
        where, exact = examples[rule, reason]
        yield label, f"{rule} at {where}: {exact}" if count == 1 else f"{count}x {rule}: {reason}"
    if rest := groups.total() - sum(count for _, count in shown):
        yield "", f"and {rest} more; -v shows them"


def _general(reason: str) -> str:
    """The reason without the names in it, so that equal causes are counted together."""
    return re.sub(r"'[^']*'", "'…'", reason)
