"""Candidates: what the passes make of the original, less what was left out, as files to be judged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.journal import Journal, Rewrite
from graphopt.options import Options, with_freezing
from graphopt.pipeline import Observer, Pipeline, Run
from graphopt.report import LeftOut

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.runtime.worker import Worker
    from graphopt.storage.files import Staged
    from graphopt.target import Target

_SAME_RULE_LIMIT = 3


@dataclass
class Candidate:
    """A rewritten model and how it came about; ``staged`` is its file once somebody needed one."""

    model: Model
    journal: Journal
    staged: Staged | None = None

    def made_by(self, rule: str) -> list[Rewrite]:
        """The rewrites of one rule."""
        return [rewrite for rewrite in self.journal.rewrites if rewrite.rule == rule]

    def discard(self) -> None:
        """Remove its file; it can be staged again."""
        if self.staged is not None:
            self.staged.discard()
            self.staged = None


@dataclass
class Candidates:
    """Builds and stages candidates of one original.

    Attributes:
        original: the model; every candidate starts from a clone.
        worker: evaluates constants.
        target: the execution provider that the result is for.
        options: which passes, and what to leave alone.
        path: where the result will be; staged files lie beside it.
        stack: owns the staged files.
        left_out: rewrites that no further candidate makes, and why.
    """

    original: Model
    worker: Worker
    target: Target
    options: Options
    path: Path
    stack: ExitStack
    left_out: list[LeftOut] = field(default_factory=list)

    def build(
        self,
        limit: int | None = None,
        without: str | None = None,
        frozen: bool = False,
        observers: Sequence[Observer] = (),
    ) -> Candidate:
        """A candidate with at most ``limit`` rewrites, ``without`` one rule, its initializers ``frozen``."""
        pipeline, only = self.options.plan()
        if frozen:
            pipeline = with_freezing(pipeline)
        limit = limit if limit is not None else self.options.bisect_limit
        skipped = frozenset(item.rewrite for item in self.left_out)
        journal = Journal(limit, skipped, self._hopeless() | ({without} if without else set()), only)
        model = self.original.clone()
        run = Run(self.target, self.worker, journal, frozenset(self.options.keep))
        Pipeline(pipeline.passes, [*pipeline.observers, *observers])(model, run)
        return Candidate(model, journal)

    def _hopeless(self) -> frozenset[str]:
        """Rules that were guilty so often that none of their rewrites is worth another search."""
        guilty = [item.rewrite.rule for item in self.left_out]
        return frozenset(rule for rule in guilty if guilty.count(rule) >= _SAME_RULE_LIMIT)

    def stage(self, candidate: Candidate) -> Path:
        """The candidate's file, written beside the output under a temporary name when first asked for."""
        if candidate.staged is None:
            external, in_place = self.options.external_data, self.options.in_place
            staged = candidate.model.stage(self.path, external_data=external, in_place=in_place)
            candidate.staged = self.stack.enter_context(staged)
        return candidate.staged.path
