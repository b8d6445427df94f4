"""One run of ``optimize``: the model, the worker, the report, and the two questions asked of candidates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.candidates import Candidate, Candidates
from graphopt.report import Report
from graphopt.target import CPU, Target

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.options import Options
    from graphopt.proof.measure import Comparison
    from graphopt.proof.verdict import Verdict
    from graphopt.proof.verify import Verifier
    from graphopt.runtime.worker import Worker
    from graphopt.samples.sampling import Samples


@dataclass
class Case:
    """What the steps of one run share.

    Attributes:
        original: the model as it came.
        original_path: its file.
        worker: runs models.
        target: what the result is for.
        options: what the user asked for.
        candidates: builds and stages results.
        report: what becomes known.
        step: what is being done.
    """

    original: Model
    original_path: Path
    worker: Worker
    target: Target
    options: Options
    candidates: Candidates
    report: Report
    step: str = ""

    def begin(self, step: str) -> None:
        """Tell the user what comes next."""
        self.step = step
        self.options.progress(step)

    def check(self, candidate: Candidate) -> Verdict:
        """Whether a candidate computes what the original does."""
        if found := self._contradiction(candidate):
            return found
        return self.verifier.check(self.candidates.stage(candidate))

    def _contradiction(self, candidate: Candidate) -> Verdict | None:
        """A failure if onnx infers what the candidate contradicts, and the original does not; else None."""
        from graphopt.proof.inference import contradiction
        from graphopt.proof.verdict import Verdict

        wrong = contradiction(candidate.model)
        if not wrong or self._contradicts_itself:
            return None
        return Verdict(False, "failed", f"onnx infers otherwise than the model states: {wrong}")

    @cached_property
    def _contradicts_itself(self) -> str:
        """What onnx finds wrong in the original, which the result need not mend; empty if nothing."""
        from graphopt.proof.inference import contradiction

        if found := contradiction(self.original):
            self.report.notes.append(f"onnx infers otherwise than the original itself states: {found}")
        return found

    def compare(self, before: Path, candidate: Candidate) -> Comparison:
        """Measure a file against a candidate."""
        from graphopt.proof.measure import compare

        sample = self.verifier.workload()
        return compare(
            before,
            self.candidates.stage(candidate),
            sample,
            target=self.target,
            threads=self.options.threads,
            worker=self.worker,
            memory=True,
        )

    @cached_property
    def verifier(self) -> Verifier:
        """Runs candidates beside the original."""
        from graphopt.proof.verify import Verifier

        return Verifier(
            self.worker,
            self.original_path,
            self._samples(),
            self.here,
            self.options.threads,
            lambda done, total: self.options.progress(self.step, done, total),
        )

    @property
    def runnable(self) -> bool:
        """Whether the original can be measured: ONNX Runtime runs it, and has the target's provider here."""
        return self.here == self.target and self.verifier.runnable

    @cached_property
    def here(self) -> Target:
        """Where candidates run on this machine: the target, or the CPU where that does not start."""
        from graphopt.runtime.probe import missing

        reason = missing(self.worker, self.target)
        if not reason:
            return self.target
        self.report.notes.append(f"{reason}: run on the CPU instead, and not measured")
        return CPU

    def _samples(self) -> Samples:
        from graphopt.samples.sampling import Samples

        options = self.options
        override = not options.freeze_initializers
        return Samples.of(self.original, options.data, options.shapes, options.seed, override)
