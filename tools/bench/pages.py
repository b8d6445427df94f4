"""Parts of docs/benchmarks.md that commands write, each between its markers."""

from __future__ import annotations

from tools import models

DOCS = models.ROOT / "docs" / "benchmarks.md"


def write(part: str, text: str) -> None:
    """Replace a part of the page."""
    DOCS.write_text(replaced(DOCS.read_text(), part, text))


def replaced(page: str, part: str, text: str) -> str:
    """The page with `text` between the markers of the part.

    Raises:
        ValueError: it lacks them.
    """
    begin, end = f"<!-- {part}: begin (python -m tools.bench {part} -w) -->", f"<!-- {part}: end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no markers {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
