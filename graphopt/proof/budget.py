"""How much accuracy a faster model may cost.

With a metric the budget bounds its drop: ``0.5%`` is a share of the original's metric, ``0.5`` an amount
of it. Without one the outputs must stay what they were: where they are classes, all but that share of the
decisions must agree with the original's, and the noise must stay ``LEAST_CLASS_DB`` below the signal;
every other floating output must keep ``LEAST_DB``. Both SQNR bounds hold for each output on its own. ``15dB``
bounds the noise of all floating outputs, and nothing else.

Several steps may share a budget: each keeps a part of the drop, and of the noise power.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from graphopt.choices import UNBOUNDED
from graphopt.errors import UsageError
from graphopt.proof.accuracy import OutputScore, Score

# Noise of a tenth of the signal's size: a cosine of 0.995 to the original's output.
LEAST_DB = 20.0
# A decision is already judged by agreement; below this even an unchanged one says little.
LEAST_CLASS_DB = 10.0
DEFAULT = "0.5%"
_ROUNDING = 1e-9
_SCALE_DB = 10.0


@dataclass(frozen=True)
class _Bound:
    """One thing that must not fall below ``least``; ``scale`` makes different ones comparable."""

    text: str
    have: float
    least: float
    scale: float

    @property
    def margin(self) -> float:
        return (self.have - self.least) / self.scale

    @property
    def holds(self) -> bool:
        return self.have >= self.least - _ROUNDING


@dataclass(frozen=True)
class Budget:
    """A bound on the accuracy that may be lost.

    Attributes:
        amount: percent of the original's metric if ``relative``, else an amount of the metric; infinite if
            anything may be lost.
        relative: which of the two.
        share: of the noise power that the whole budget allows.
        least_db: the SQNR that is all that must be kept; None judges by the rest.
    """

    amount: float
    relative: bool
    share: float = 1.0
    least_db: float | None = None

    @classmethod
    def parse(cls, text: str = DEFAULT) -> Budget:
        """Read ``0.5%``, ``0.5`` or ``15dB``.

        Raises:
            UsageError: it is none of these, or a percentage above 100.
        """
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%|dB)?\s*", text, re.IGNORECASE)
        if match is None or (match[2] == "%" and float(match[1]) > 100):
            raise UsageError(
                f"--max-drop {text!r} is no percentage up to 100 such as 0.5%, no amount such as 0.5, and no"
                " ratio of signal to noise such as 15dB"
            )
        if match[2] not in (None, "%"):
            return cls(math.inf, True, least_db=float(match[1]))
        return cls(float(match[1]), match[2] == "%")

    @classmethod
    def unbounded(cls) -> Budget:
        """Anything may be lost: what was asked for is done, and its cost is told."""
        return cls(math.inf, relative=True)

    def part(self, share: float) -> Budget:
        """What the steps so far may use of it, when others will follow.

        Args:
            share: above 0, at most 1.
        """
        return replace(self, amount=self.amount * share, share=self.share * share)

    @property
    def is_bounded(self) -> bool:
        """Whether there is anything to keep."""
        return math.isfinite(self.amount) or self.least_db is not None

    def __str__(self) -> str:
        if self.least_db is not None:
            return f"{self.least_db:g} dB"
        return f"{self.amount:g}{' %' if self.relative else ''}" if self.is_bounded else UNBOUNDED

    def require_metric(self, exists: bool) -> None:
        """Refuse an amount of a metric that does not exist.

        Raises:
            UsageError: the budget is an amount, and there is no metric.
        """
        if not exists and not self.relative:
            raise UsageError(
                f"--max-drop {self.amount:g} is an amount of a metric, and there is none: give --eval"
                f" labels or a function, or a percentage such as {self.amount:g}%"
            )

    def allowed(self, reference: Score) -> float:
        """The drop that is allowed, in units of the metric (in percent of the decisions without one)."""
        if not self.relative or reference.metric is None or not self.is_bounded:
            return self.amount
        return abs(reference.metric) * self.amount / 100

    def holds(self, score: Score, reference: Score) -> tuple[bool, str]:
        """Whether a model keeps the budget, and on what grounds in words.

        Args:
            score: of the model.
            reference: of the original, from the same evaluator.
        """
        bounds = list(self._bounds(score, reference))
        if not self.is_bounded:
            return True, "; ".join(bound.text for bound in bounds) or "nothing to judge by"
        if not bounds:
            none = "no output with numbers that vary"
            lacks = none if self.least_db is not None else f"no metric, and {none}"
            return False, f"nothing to judge by: {lacks}"
        broken = [bound for bound in bounds if not bound.holds]
        worst = min(broken or bounds, key=lambda bound: bound.margin)
        return not broken, worst.text

    def margin(self, score: Score, reference: Score) -> float:
        """How far inside the budget a model is: at least 0 if it holds, and 1 if no metric is lost.

        Candidates may be ranked by it; what is an SQNR counts in steps of 10 dB above its bound.
        """
        return min((bound.margin for bound in self._bounds(score, reference)), default=-math.inf)

    def _bounds(self, score: Score, reference: Score) -> Iterator[_Bound]:
        if self.least_db is not None:
            yield from (self._quiet(one, self.least_db) for one in score.outputs if one.sqnr_db is not None)
            return
        allowed = self.allowed(reference)
        if score.metric is not None and reference.metric is not None:
            drop = reference.metric - score.metric
            grain = "" if score.lost is None else _grain(allowed, score.rows or 0, "label")
            text = f"{score.metric_name} {reference.metric:.6g} -> {score.metric:.6g}, a drop of {drop:.3g}"
            text += self._told(f"allowed {allowed:.3g}{grain}")
            yield _Bound(text, score.metric, reference.metric - allowed, allowed or 1.0)
            return
        for output in score.outputs:
            if output.agreement is not None:
                least = 1 - allowed / 100
                text = f"'{output.name}' agrees on {output.agreement:.2%} of {output.rows:,} rows"
                text += self._told(f"least {least:.2%}{_grain(allowed, output.rows, 'row')}")
                yield _Bound(text, output.agreement, least, allowed / 100 or 1.0)
            if output.sqnr_db is not None:
                yield self._quiet(output, LEAST_DB if output.agreement is None else LEAST_CLASS_DB)

    def _quiet(self, output: OutputScore, least: float) -> _Bound:
        """The noise of one output."""
        least -= 10 * math.log10(self.share)
        assert output.sqnr_db is not None
        have = output.sqnr_db
        text = f"'{output.name}' has {have:.1f} dB" + self._told(f"least {least:.3g} dB")
        return _Bound(text, have, least, _SCALE_DB)

    def _told(self, bound: str) -> str:
        return f" ({bound})" if self.is_bounded else ""


def _grain(percent: float, rows: int, noun: str) -> str:
    """Says so where a bound is finer than what so few rows can show."""
    return f", less than one of {rows:,} {noun}s" if percent * rows < 100 and rows else ""
