"""Who takes part in a comparison, and how each converts a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

Command = Callable[[str, Path, Path, Path, str], list[str]]

ORIGINAL = "fp32"


@dataclass(frozen=True)
class Roster:
    """The contestants of one comparison.

    Attributes:
        ours: names of those that are graphopt, which runs in this interpreter.
        peers: names of the others, which run in one of their own.
        command: of a name, the model's file, a folder of samples, the file of the result, and the peers'
            interpreter: the command by which the contestant makes the result.
    """

    ours: Collection[str]
    peers: Collection[str]
    command: Command

    @property
    def names(self) -> list[str]:
        """All of them, in the order of tables."""
        return [*self.ours, *self.peers]


def file_name(name: str) -> str:
    """Name of the file of a contestant's result."""
    return f"{name.replace(' ', '_')}.onnx"
