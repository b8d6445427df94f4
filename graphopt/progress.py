"""How long work tells what it is doing, to whoever watches."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What long work calls: the stage it is in, and how many of its steps are done."""

    def __call__(self, stage: str, done: int | None = None, total: int | None = None) -> None:
        """Tell the stage; ``done`` of ``total`` steps where they are known."""


def silent(stage: str, done: int | None = None, total: int | None = None) -> None:
    """Progress that nobody watches."""
