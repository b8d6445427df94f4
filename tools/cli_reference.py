"""Writes docs/cli.md from the command line itself: ``python -m tools.cli_reference``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from graphopt.console.cli import app
from graphopt.console.exits import EXIT_CODES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

HEAD = """\
# Command line

`python -m tools.cli_reference` writes this page; `graphopt COMMAND --help` shows the same.
`graphopt --install-completion` lets the shell complete options, passes and targets.

With `--json` a command prints one JSON object to stdout and nothing else. Every failure is one line on
stderr, `graphopt: error: what, where, what to do`, and one of these exit codes:
"""


def reference() -> str:
    """The page."""
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    codes = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join([HEAD, "| code | meaning |", "|-|-|", *codes, "", *map(_command, commands)])


def _command(command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    usage = " ".join(["graphopt", command.name, *(param.metavar for param in arguments), "[OPTIONS]"])
    examples = [text.removeprefix("Example: ") for text in command.epilog.split("\n\n")]
    lines = [
        f"## graphopt {command.name}\n",
        f"{command.help}\n",
        f"    {usage}\n",
        *(f"Example: `{example}`\n" for example in examples),
    ]
    return "\n".join([*lines, "| | |", "|-|-|", *map(_row, arguments), *_options(command), ""])


def _options(command: Any) -> Iterator[str]:
    """The rows of all options, those of one panel of the help together."""
    panels = defaultdict(list)
    for param in command.params:
        if param.param_type_name == "option":
            panels[param.rich_help_panel or ""].append(param)
    for panel, params in panels.items():
        if panel:
            yield f"| **{panel}** | |"
        yield from map(_row, params)


def _row(param: Any) -> str:
    if param.param_type_name == "argument":
        name = param.metavar
    else:
        name = f"{', '.join(param.opts)} {param.metavar}".strip()
    shown = param.default not in (None, False, 0.0) or param.name in ("seed", "threads")
    default = f" Default: {param.default}." if shown and not param.required else ""
    cells = (text.replace("|", r"\|") for text in (f"`{name}`", f"{param.help}{default}"))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the page."""
    PAGE.write_text(reference())


if __name__ == "__main__":
    main()
