"""What the command line prints. rich is imported only by what needs it, and colour only reaches terminals."""

from __future__ import annotations

import inspect as python_inspect
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from graphopt.console.progress import shown as progress
from graphopt.plain import plain, to_json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from graphopt.inspection import Inspection
    from graphopt.pipeline import Pass
    from graphopt.proof.compare import Bench, Verification
    from graphopt.registry import Entry
    from graphopt.report import Report

__all__ = ["progress"]

_UNLIMITED = 10_000


def print_json(record: Any) -> None:
    """Print a record as one JSON object."""
    _write(to_json(record) + "\n")


def print_report(report: Report, time_passes: bool, stats: bool, verbose: int) -> None:
    """Print what ``optimize`` did: tables on request, then the summary."""
    from graphopt.console import precision, pruning, summary

    if stats:
        show(_table(summary.rule_rows(report), *summary.RULE_HEAD), "")
    if time_passes:
        show(_table(summary.time_rows(report), *summary.PASS_HEAD), "")
    if rows := list(pruning.rows(report, verbose)):
        show(_table(rows, *pruning.head(report, verbose)), "")
    if rows := list(precision.layer_rows(report, verbose)):
        show(_table(rows, *precision.layer_head(verbose)), "")
    show(_facts(summary.facts(report, verbose)))


def print_verification(verification: Verification, as_json: bool) -> None:
    """Print whether two models agree."""
    from graphopt.console import summary

    if as_json:
        print_json(verification)
    else:
        show(_facts(summary.verified(verification)))


def print_bench(found: Bench, as_json: bool) -> None:
    """Print two models side by side."""
    from graphopt.console import summary

    if as_json:
        print_json(found)
    else:
        show(_facts(summary.benched(found)))


def print_inspection(inspection: Inspection, as_json: bool, layers: bool) -> None:
    """Print what a model is, its layers too if asked."""
    from graphopt.console import describe

    if as_json:
        record = plain(inspection)
        print_json(record if layers else {key: value for key, value in record.items() if key != "layers"})
        return
    show(_facts(describe.facts(inspection)), "", _table(describe.op_rows(inspection), *describe.OP_HEAD))
    if layers:
        show("", _table(describe.layer_rows(inspection), *describe.LAYER_HEAD))


def print_passes(entries: Sequence[Entry], as_json: bool) -> None:
    """Print the passes that can be named."""
    if as_json:
        print_json({"passes": entries})
        return
    show(_table(((entry.name, entry.summary) for entry in entries), "pass", "~what it does"))
    show("", "'graphopt passes NAME' shows what one does and its options.")


def print_pass(cls: type[Pass], as_json: bool) -> None:
    """Print one pass: what it does and its options."""
    about, options = describe_pass(cls)
    if as_json:
        print_json({"name": cls.name, "exact": cls.exact, "description": about, "options": options})
        return
    show(f"{cls.name} ({'exact' if cls.exact else 'lossy'})", "", about, "")
    rows = ([str(text) for text in option.values()] for option in options)
    show(_table(rows, "option", "type", "default", "~meaning") if options else "It has no options.")


def describe_pass(cls: type[Pass]) -> tuple[str, list[dict[str, Any]]]:
    """The documentation of a pass, and its options with what the ``Attributes:`` there say of them."""
    from graphopt.registry import options_of

    about, _, attributes = (python_inspect.getdoc(cls) or "").partition("\n\nAttributes:\n")
    meanings = dict(re.findall(r"^ {4}(\w+): ((?:.|\n {5,})*)", attributes, re.MULTILINE))
    options = [
        {
            "name": option.name.replace("_", "-"),
            "type": str(option.type),
            "default": option.default,
            "meaning": " ".join(meanings.get(option.name, "").split()),
        }
        for option in options_of(cls)
    ]
    return about, options


def _facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Rows of a label and what is to be said about it, which wraps beside the label."""
    from rich.table import Table

    return _filled(Table.grid(padding=(0, 2)), rows, "", "~", style="bold cyan")


def _table(rows: Iterable[Sequence[str]], *head: str) -> Table:
    """A table; a leading ``>`` marks a heading of numbers, ``~`` one of text that may wrap."""
    from rich import box
    from rich.table import Table

    return _filled(
        Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold"), rows, *head
    )


def _filled(table: Table, rows: Iterable[Sequence[str]], *head: str, style: str = "") -> Table:
    """The table with its columns and rows; ``style`` is that of the first column."""
    from rich.text import Text

    cells = [list(row) for row in rows]
    for index, title in enumerate(head):
        justify: Literal["left", "right"] = "right" if title.startswith(">") else "left"
        # rich measures a column that must not wrap by its longest word, so its width is stated.
        width = None if title.startswith("~") else max((len(row[index]) for row in cells), default=0)
        table.add_column(
            title.lstrip(">~"),
            justify=justify,
            overflow="fold",
            no_wrap=width is not None,
            min_width=width,
            style=style if index == 0 else "",
        )
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def show(*parts: RenderableType) -> None:
    """Print parts to stdout; in a file without control codes, and rather wide than with broken words."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, emoji=False, markup=False)
    renderables = [Text(part) if isinstance(part, str) else part for part in parts]
    if not console.is_terminal:
        unlimited = console.options.update(width=_UNLIMITED)
        longest_words = (console.measure(part, options=unlimited).minimum for part in renderables)
        console.width = max(console.width, *longest_words)
    with console.capture() as captured:
        console.print(*renderables, sep="\n")
    _write(captured.get() if console.is_terminal else _stripped(captured.get()))


def _stripped(text: str) -> str:
    """The text without the blanks that tables leave at line ends."""
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def _write(text: str) -> None:
    if sys.stdout is None:  # closed by the caller, as `>&-` does
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader went away, as `| head` does: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
