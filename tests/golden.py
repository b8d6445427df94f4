"""Goldens: what a pass makes of a small model in ONNX text, and what it refuses.

A file ``goldens/PASS/BEHAVIOUR.txt`` holds a comment, the model before, the model after, and the refusals.
The first two are written by hand, the others only by ``python -m tools.bless``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx.parser
import onnx.printer

from graphopt import registry
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU

FOLDER = Path(__file__).parent / "goldens"


@dataclass(frozen=True)
class Golden:
    """One behaviour of one pass."""

    comment: str
    before: str
    after: str = ""
    refused: str = ""

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Read a file; sections that are not there are empty."""
        comment, *sections = path.read_text().split("--- ")
        found = dict(section.split("\n", 1) for section in sections)
        return cls(comment, found["before"], found.get("after", ""), found.get("refused", ""))

    def __str__(self) -> str:
        sections = {"before": self.before, "after": self.after, "refused": self.refused}
        return self.comment + "".join(f"--- {name}\n{text}" for name, text in sections.items() if text)

    def blessed(self, spelling: str, worker: Worker) -> Golden:
        """What the pass does now."""
        model, run = Model.of(onnx.parser.parse_model(self.before)), Run(CPU, worker)
        registry.parse(spelling)(model, run)
        refused = [f"{refusal.rule}: {refusal.where}: {refusal.reason}\n" for refusal in run.journal.refusals]
        after = onnx.printer.to_text(model.skeleton()).rstrip() + "\n"
        return replace(self, after=after, refused="".join(refused))
