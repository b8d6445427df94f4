"""What all comparisons do: one model or task after another, a JSON file of them, and a page of tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tools import models
from tools.bench import pages
from tools.bench.asking import JudgeError

Facts = dict[str, Any]
Compare = Callable[[str, Facts], Facts]


def each(names: Sequence[str], chosen: argparse.Namespace, compare: Compare) -> dict[str, Facts]:
    """Compare one by one; the JSON file keeps what is not run again, and what a failed one had before.

    Args:
        names: models or tasks.
        chosen: the command line, whose ``json`` is the file.
        compare: gives the facts of one, from its name and the facts that an earlier run found.

    Returns:
        The facts of all that the file knows now.
    """
    found: dict[str, Facts] = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
    for name in names:
        print(name, file=sys.stderr)
        try:
            found[name] = compare(name, found.get(name, {}))
        except (JudgeError, models.FetchError) as error:
            print(f"{name}: {error}", file=sys.stderr)
        chosen.json.write_text(json.dumps(found, indent=1))
    return found


def ordered(found: dict[str, Facts], names: Sequence[str]) -> dict[str, Facts]:
    """The facts in the order of the names."""
    return {name: found[name] for name in names if name in found}


def publish(text: str, page: str, chosen: argparse.Namespace) -> None:
    """Print the tables, and write them into the documentation if that is asked for."""
    print(text)
    if chosen.write_docs:
        pages.write(page, text)
