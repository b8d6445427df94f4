"""What happened to a model and why: rewrites, refusals, notes, time. Bisection counts rewrites here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rewrite:
    """One change, known by its rule and by the name of the value it makes (others may come and go)."""

    rule: str
    value: str


@dataclass(frozen=True)
class Refusal:
    """One place where a rule nearly applied, and the reason why it did not."""

    rule: str
    where: str
    reason: str


@dataclass
class Journal:
    """The record of one run of a pipeline.

    Attributes:
        limit: the number of rewrites to allow, for bisection; ``None`` allows all.
        left_out: rewrites that must not happen again, because they broke parity or did not pay.
        without: rules that must not apply at all.
        only: when set, the rewrites that may happen (replaying the decisions of an earlier report).
        file_size: bytes of the original's file; what a rewrite adds must be saved elsewhere.
    """

    limit: int | None = None
    left_out: frozenset[Rewrite] = frozenset()
    without: frozenset[str] = frozenset()
    only: frozenset[Rewrite] | None = None
    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: dict[Refusal, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    passes: Counter[str] = field(default_factory=Counter)
    file_size: int | None = None

    def admit(self, rule: str, value: str) -> bool:
        """Count a rewrite that is about to happen; ``False`` when it must not."""
        rewrite = Rewrite(rule, value)
        if self.limit is not None and len(self.rewrites) >= self.limit:
            return False
        if rule in self.without or rewrite in self.left_out:
            return False
        if self.only is not None and rewrite not in self.only:
            return False
        self.rewrites.append(rewrite)
        return True

    def refuse(self, rule: str, where: str, reason: str) -> None:
        """Record why a rule did not apply at a node or value; repeats are counted once."""
        self.refusals[Refusal(rule, where, reason)] = None

    def note(self, text: str) -> None:
        """Record something that the user should know about the result."""
        self.notes[text] = None

    def counts(self) -> Counter[str]:
        """Rewrites per rule."""
        return Counter(rewrite.rule for rewrite in self.rewrites)

    @property
    def revision(self) -> int:
        """A number that grows with every rewrite; analyses of the model are cached by it."""
        return len(self.rewrites)
