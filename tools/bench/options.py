"""Options that the comparisons share."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tools import models


def add_contestants(parser: argparse.ArgumentParser, names: list[str]) -> None:
    """Who takes part, in which interpreter, and within which limits."""
    parser.add_argument(
        "--contestants", nargs="+", default=names, choices=names, metavar="NAME", help=_listed(names)
    )
    parser.add_argument(
        "--peers-python",
        type=interpreter,
        default=sys.executable,
        help="interpreter with the peers installed",
    )
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="for one conversion")
    parser.add_argument("--memory", type=float, default=12, metavar="GB", help="for one conversion")
    parser.add_argument("--reuse", action="store_true", help="take the peers' results of an earlier run")


def add_tasks(parser: argparse.ArgumentParser, names: list[str], latency: float) -> None:
    """What to compare on, and how long to measure each contestant there."""
    parser.add_argument(
        "--tasks",
        nargs="*",
        type=_one_of(names),
        default=names,
        metavar="TASK",
        help=f"{_listed(names)}; none makes the tables of what is known",
    )
    parser.add_argument(
        "--latency", type=float, default=latency, metavar="SECONDS", help="for one measurement"
    )


def _one_of(names: list[str]) -> Callable[[str], str]:
    """Like ``choices``, which refuses an empty list."""

    def checked(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(names)}")
        return name

    return checked


def _listed(names: list[str]) -> str:
    """Names as argparse's help takes them, to which a percent sign is a placeholder."""
    return ", ".join(names).replace("%", "%%")


def add_results(parser: argparse.ArgumentParser, name: str) -> None:
    """Where files and tables go."""
    parser.add_argument("--work", type=absolute, default=models.cache_folder() / name, metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=Path(f"{name}.json"), metavar="FILE")
    parser.add_argument(
        "-w", "--write-docs", action="store_true", help="write the tables into docs/benchmarks.md"
    )


def absolute(path: str) -> Path:
    """A path that other folders can use too; links stay, by which a virtual environment is found."""
    return Path(path).absolute()


def interpreter(name: str) -> str:
    """The path of a program, which may be in one of the usual folders."""
    return str(absolute(shutil.which(name) or name))


def real_models() -> list[str]:
    """All models but onnx's light ones as they are: their weights are made by the graph, and all alike."""
    return [name for name in models.recipes() if not name.startswith("light_")]
