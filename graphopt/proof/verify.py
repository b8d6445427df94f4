"""Parity of two models: the candidate gives what the original gives, within the original's own noise.

Both run in the worker: with nothing rewritten by ONNX Runtime, which shows mistakes, and as the user will run
them.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from graphopt.errors import DataError, InvalidModelError, WorkerError
from graphopt.model import Model
from graphopt.proof.tolerance import WEAK, Spread, judge, leaves
from graphopt.proof.verdict import OutputError, Status, Verdict, worse
from graphopt.runtime.values import Tensor, Value, keep
from graphopt.runtime.worker import Session, Worker
from graphopt.samples.sampling import Sample, Samples
from graphopt.shapes.schema import undefined_operators
from graphopt.target import CPU, REFERENCE, Target

_MOVABLE = {1: np.float32, 10: np.float16, 11: np.float64}
_REPEATED_SAMPLES = 2
# Running the original without optimization takes seconds for large models, and each candidate as long again.
MOST_SECONDS = 30.0
FEWEST = 8


@dataclass
class _Reference:
    """What the original gives on one sample at each level; ``moved``: it also ran on inputs an ulp away."""

    index: int
    sample: Sample
    outputs: dict[Target, dict[str, Value]]
    moved: bool


@dataclass
class Verifier:
    """Compares candidates with one original, whose results and noise are computed once.

    Args:
        worker: runs the models.
        original: the original's file.
        samples: what to run on.
        target: where the user will run the model.
        threads: ONNX Runtime's intra-op threads; 0 is its default.
        progress: told the number of samples that are done, and of all if it is known.
    """

    worker: Worker
    original: Path
    samples: Samples
    target: Target = CPU
    threads: int = 0
    progress: Callable[[int, int | None], None] = lambda done, total: None
    reason: str = field(default="", init=False)
    _short: bool = field(default=False, init=False)
    spreads: defaultdict[Target, dict[str, Spread]] = field(
        default_factory=lambda: defaultdict(dict), init=False
    )

    def __post_init__(self) -> None:
        self.target = self.target.exact

    @property
    def runnable(self) -> bool:
        """Whether ONNX Runtime runs the original on at least one sample; if not, ``reason`` says why."""
        return bool(self._references)

    def workload(self) -> Sample:
        """The sample to measure latency with.

        Raises:
            WorkerError: the original cannot be run.
        """
        if not self._references:
            raise WorkerError(self.reason)
        return self._workload or self._references[0].sample

    def check(self, candidate: Path) -> Verdict:
        """Compare a candidate, given as a file, with the original."""
        if not self._references:
            status: Status = "not verified" if self._opens else "structural only"
            return Verdict(True, status, self.reason)
        worst: dict[str, OutputError] = {}
        for level in self._levels:
            failure = self._check_level(candidate, level, worst)
            if failure is not None:
                return failure
        return self._passed(worst)

    def first_divergence(self, candidate: Path, verdict: Verdict) -> str | None:
        """The first tensor, in the original's order, that both models name and whose values differ.

        It runs both on the failing sample, with all tensors of their main graphs as outputs.

        Raises:
            GraphoptError: one of the models cannot be loaded or written.
        """
        from graphopt.proof.exposed import exposed

        if verdict.first_bad is None:
            return None
        sample = next(one.sample for one in self._references if one.index == verdict.first_bad)
        with tempfile.TemporaryDirectory(dir=self.worker.folder) as folder, contextlib.ExitStack() as stack:
            staged = [stack.enter_context(one) for one in exposed(self.original, candidate, Path(folder))]
            only = Samples("the failing sample", lambda: iter([sample]))
            inner = Verifier(self.worker, staged[0].path, only, CPU, self.threads)
            outputs = inner.check(staged[1].path).outputs
        return next((output.name for output in outputs if output.wrong), None)

    def _passed(self, worst: dict[str, OutputError]) -> Verdict:
        spreads = self.spreads[REFERENCE]
        if spreads and all(spread.unstable for spread in spreads.values()):
            reason = "non-deterministic: every output of the original differs between two of its own runs"
            return Verdict(True, "not verified", reason, outputs=tuple(worst.values()))
        notes = [*self._weaknesses(), *([self.reason] if self.reason else [])]
        if self._short:
            notes.append(f"the other samples were left out, since these took over {MOST_SECONDS:g} s")
        evidence = self.samples.describe(len(self._references))
        return Verdict(True, "verified", "", evidence, tuple(worst.values()), tuple(notes))

    def _weaknesses(self) -> Iterator[str]:
        """The outputs that were not judged, and those whose noise would hide errors that users might see."""
        for name in self.spreads[REFERENCE]:
            found = [self.spreads[level].get(name, Spread()) for level in self._levels]
            share = max(spread.allowed for spread in found)
            if any(spread.unstable for spread in found):
                yield f"output '{name}' not judged: the original itself gives varying results"
            elif share > WEAK:
                yield (
                    f"weak evidence for output '{name}': rounding alone changes the original's so much that"
                    f" errors of {share:.0%} of its largest element pass"
                )

    def _check_level(self, candidate: Path, level: Target, worst: dict[str, OutputError]) -> Verdict | None:
        """The failure of the candidate at one level; ``worst`` collects the errors."""
        index = None
        try:
            with self.worker.opened(candidate, level, self.threads) as session:
                for done, reference in enumerate(self._references):
                    self.progress(done, len(self._references))
                    index = reference.index
                    outputs = keep(self.worker.run(session, reference.sample))
                    failure = self._compare(level, reference, outputs, worst)
                    if failure:
                        return self._failure(failure, worst, index)
        except WorkerError as error:
            where = "" if index is None else f" on sample {index}"
            reason = f"the result does not run{where}, {_level_words(level)}: {error}"
            return self._failure(reason, worst, index)
        return None

    def _failure(self, reason: str, worst: dict[str, OutputError], index: int | None) -> Verdict:
        return Verdict(False, "failed", reason, outputs=tuple(worst.values()), first_bad=index)

    def _compare(
        self, level: Target, reference: _Reference, outputs: dict[str, Value], worst: dict[str, OutputError]
    ) -> str:
        """Judge every output of one run; returns what is wrong with the first that is."""
        expected, found = _flat(reference.outputs[level]), _flat(outputs)
        if list(expected) != list(found):
            return f"outputs {', '.join(found)} instead of {', '.join(expected)}"
        failures = []
        for name, tensor in expected.items():
            judgement = judge(self.spreads[level].setdefault(name, Spread()), tensor, found[name])
            worst[name] = worse(worst.get(name, OutputError(name)), judgement, tensor, found[name])
            if judgement.wrong:
                where = f"output '{name}' of sample {reference.index}, {_level_words(level)}"
                failures.append(f"{where}: {judgement.wrong}")
        return failures[0] if failures else ""

    # The original.

    @cached_property
    def _levels(self) -> list[Target]:
        """Where candidates are compared: the target's level only if the original runs there."""
        return list(self._references[0].outputs) if self._references else []

    @cached_property
    def _opens(self) -> bool:
        """Whether ONNX Runtime accepts the original at all."""
        try:
            with self.worker.opened(self.original, REFERENCE, self.threads):
                return True
        except WorkerError as error:
            if unknown := undefined_operators(Model.load(self.original).ir):
                told = f"ONNX defines no operator {', '.join(unknown)}, and ONNX Runtime refuses it"
                raise InvalidModelError(f"{self.original.name}: {told}") from error
            self.reason = f"not compared, since ONNX Runtime cannot load the original{_hint(error)}: {error}"
            return False

    @cached_property
    def _references(self) -> list[_Reference]:
        """The samples that the original runs on, with its results; fills the spreads."""
        if not self._opens:
            return []
        with self.worker.opened(self.original, REFERENCE, self.threads) as session:
            self.samples.fit(lambda sample: self._run(session, sample) is not None)
            found = [self._reference(session, index, sample) for index, sample in self._in_time()]
            self._workload = self.samples.workload() if self.samples.is_synthetic else None
        references = [reference for reference in found if reference is not None]
        if references:
            self.reason = ""
            self._add_target(references)
        elif not self.reason:
            raise DataError(f"{self.samples.source} holds no sample")
        return references

    def _in_time(self) -> Iterator[tuple[int, Sample]]:
        """The samples with their numbers, as many as half a minute allows, but at least eight."""
        end = time.monotonic() + MOST_SECONDS
        for index, sample in enumerate(self.samples):
            if index >= FEWEST and time.monotonic() > end:
                self._short = True
                return
            yield index, sample

    def _reference(self, session: Session, index: int, sample: Sample) -> _Reference | None:
        """One sample's results without optimization, and their noise; None if the original fails on it."""
        self.progress(index, None)
        outputs = self._run(session, sample)
        if outputs is None:
            return None
        moved = self._observe_moved(session, index, sample, outputs)
        again = self._run(session, sample) if index < _REPEATED_SAMPLES else None
        if again is not None:
            self._note_varying(outputs, again)
        return _Reference(index, sample, {REFERENCE: outputs}, moved)

    def _observe_moved(self, session: Session, index: int, sample: Sample, outputs: dict[str, Value]) -> bool:
        """Take in the noise of a sample at the session's level; returns whether its inputs could be moved."""
        moved = _moved(sample, index)
        if moved is None:
            return False
        with contextlib.suppress(WorkerError):
            self._observe(session.target, outputs, keep(self.worker.run(session, moved)))
            return True
        return False

    def _add_target(self, references: list[_Reference]) -> None:
        """Run the original as the user will: what it gives there, and its noise there.

        Samples without floats to move show noise only in how the levels differ.
        """
        try:
            self._run_at(self.target, references)
        except WorkerError:
            self.reason = f"not compared at the level of {self.target.name}: the original fails there"
            for reference in references:
                reference.outputs.pop(self.target, None)

    def _run_at(self, level: Target, references: list[_Reference]) -> None:
        with self.worker.opened(self.original, level, self.threads) as session:
            for reference in references:
                expected = reference.outputs[REFERENCE]
                outputs = reference.outputs[level] = keep(self.worker.run(session, reference.sample))
                if not reference.moved:
                    self._observe(REFERENCE, expected, outputs)
                if not self._observe_moved(session, reference.index, reference.sample, outputs):
                    self._observe(level, outputs, expected)

    def _run(self, session: Session, sample: Sample) -> dict[str, Value] | None:
        try:
            return keep(self.worker.run(session, sample))
        except WorkerError as error:
            self.reason = f"ONNX Runtime cannot run the original on {self.samples.source} samples: {error}"
            return None

    def _observe(self, level: Target, outputs: dict[str, Value], variant: dict[str, Value]) -> None:
        expected, found = _flat(outputs), _flat(variant)
        for name, tensor in expected.items():
            spread = self.spreads[level].setdefault(name, Spread())
            if name in found:
                spread.observe(tensor, found[name])
            else:
                spread.unstable = True

    def _note_varying(self, outputs: dict[str, Value], again: dict[str, Value]) -> None:
        """Two runs on the same input: an output that differs has no value to compare with."""
        found = _flat(again)
        for name, tensor in _flat(outputs).items():
            other = found.get(name)
            same = (
                other is not None
                and tensor.shape == other.shape
                and judge(Spread(), tensor, other).wrong == ""
            )
            for level in (REFERENCE, self.target):
                self.spreads[level].setdefault(name, Spread()).unstable |= not same


def _level_words(level: Target) -> str:
    return "run as written" if level == REFERENCE else f"run as ONNX Runtime optimizes it ({level.name})"


def _hint(error: WorkerError) -> str:
    """What to try when the original does not load, unless the error says so itself."""
    custom = "is not a registered function/op" in str(error) or "NOT_IMPLEMENTED" in str(error)
    return " (if it has custom operators, name their library with --custom-ops)" if custom else ""


def _flat(outputs: dict[str, Value]) -> dict[str, Tensor]:
    return dict(leaf for name, value in outputs.items() for leaf in leaves(name, value))


def _moved(sample: Sample, seed: int) -> Sample | None:
    """The sample with every float one unit in the last place away, up or down; None if it holds no float."""
    rng = np.random.default_rng(seed)
    moved = dict(sample)
    for name, value in sample.items():
        if isinstance(value, Tensor) and value.elem_type in _MOVABLE:
            array = value.numpy()
            towards = rng.choice(np.array([-np.inf, np.inf], array.dtype), array.shape)
            moved[name] = Tensor.of(np.nextafter(array, towards))
    return moved if any(moved[name] is not value for name, value in sample.items()) else None
