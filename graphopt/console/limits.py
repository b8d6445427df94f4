"""Limits on time and memory, as the command line takes them."""

from __future__ import annotations

import typer

_LARGEST_LIMIT = 1_000_000


def positive(limit: float | None) -> float | None:
    """Refuses limits that the system could not keep; NaN among them."""
    if limit is not None and not 0 < limit <= _LARGEST_LIMIT:
        raise typer.BadParameter(f"{limit:g} is not in the range 0<x<={_LARGEST_LIMIT:,}")
    return limit


def to_bytes(gigabytes: float | None) -> int | None:
    """Gigabytes as bytes."""
    return None if gigabytes is None else int(gigabytes * 1e9)
