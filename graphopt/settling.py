"""Which exact rewrites stay: those that keep parity, found by bisection, and that do not cost time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.candidates import Candidate
from graphopt.errors import ParityError, WorkerError
from graphopt.journal import Journal
from graphopt.report import LeftOut
from graphopt.search import first_failure

if TYPE_CHECKING:
    from graphopt.case import Case
    from graphopt.proof.measure import Comparison


@dataclass(frozen=True)
class Settler:
    """Leaves out rewrites of one run."""

    case: Case

    # Verifying.

    def settle(self, candidate: Candidate) -> Candidate:
        """Leave out guilty rewrites one by one, until what is left is verified.

        Raises:
            ParityError: the model differs without any rewrite.
        """
        self.case.begin("verifying")
        verdict = self.case.check(candidate)
        while not verdict.ok:
            if not candidate.journal.rewrites:
                raise ParityError(
                    f"the rewritten file differs although no rewrite was made: {verdict.reason}"
                )
            self._leave_out_guilty(candidate)
            self.case.begin("verifying")
            candidate = self.case.candidates.build()
            verdict = self.case.check(candidate)
        self.case.report.verdict = verdict
        return candidate

    def _leave_out_guilty(self, candidate: Candidate) -> None:
        """Bisect over the number of rewrites for the first that breaks parity."""
        candidate.discard()

        def failure(count: int) -> str:
            self.case.begin(f"bisecting {len(candidate.journal.rewrites)} rewrites (the first {count})")
            trial = self.case.candidates.build(limit=count)
            try:
                return self._failure(trial)
            finally:
                trial.discard()

        guilty = first_failure(len(candidate.journal.rewrites), lambda count: bool(failure(count)))
        reason = f"breaks parity: {failure(guilty)}"
        self.case.candidates.left_out.append(LeftOut(candidate.journal.rewrites[guilty - 1], reason))

    def _failure(self, trial: Candidate) -> str:
        """Why a candidate fails and the first tensor that diverges; empty when it passes."""
        verdict = self.case.check(trial)
        if verdict.ok:
            return ""
        first = self.case.verifier.first_divergence(self.case.candidates.stage(trial), verdict)
        return f"{verdict.reason}{f'; first diverging tensor: {first}' if first else ''}"

    # Measuring.

    def pay(self, candidate: Candidate) -> Candidate:
        """Keep what is not slower: the candidate, else it without one of its rules, else the original."""
        case = self.case
        if not candidate.journal.rewrites or not case.runnable:
            return candidate
        case.begin("measuring")
        try:
            comparison = case.compare(case.original_path, candidate)
        except WorkerError as error:
            case.report.notes.append(f"not measured: {error}")
            return candidate
        if comparison.verdict != "slower":
            case.report.comparison = comparison
            return candidate
        for rule, _ in candidate.journal.counts().most_common():
            trial = case.candidates.build(without=rule)
            faster = case.compare(case.original_path, trial)
            if faster.verdict != "slower" and self._verified_again(trial):
                candidate.discard()
                case.candidates.left_out += [
                    LeftOut(r, f"slower: {comparison.summary()}") for r in candidate.made_by(rule)
                ]
                case.report.comparison = faster
                return trial
            trial.discard()
        return self._give_up(candidate, comparison)

    def _verified_again(self, trial: Candidate) -> bool:
        return not self.case.options.verify or self.case.check(trial).ok

    def _give_up(self, candidate: Candidate, comparison: Comparison) -> Candidate:
        case = self.case
        case.report.kept_original = f"the result was slower: {comparison.summary()}"
        case.report.comparison = comparison
        case.candidates.left_out += [LeftOut(r, "slower") for r in candidate.journal.rewrites]
        candidate.discard()
        original = Candidate(case.original, Journal())
        if case.options.verify:
            case.report.verdict = case.check(original)
        return original
