"""``optimize``: load → passes → verify (bisect what breaks parity) → measure (revert what costs) → save."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import graph as g
from graphopt import registry
from graphopt.candidates import Candidate, Candidates
from graphopt.errors import InvalidModelError, ParityError, UsageError, WorkerError
from graphopt.journal import Journal
from graphopt.legacy import FIRST_WITH_CONSTANTS
from graphopt.model import Model
from graphopt.observers import FingerprintCheck, dump, print_after
from graphopt.options import Options
from graphopt.pipeline import Observer, Pass, Run
from graphopt.report import AccuracyReport, LayerReport, LeftOut, Report, Stats
from graphopt.runtime.worker import Worker
from graphopt.search import first_failure
from graphopt.storage.files import check_destination
from graphopt.target import CPU, Target

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from graphopt.lowering import Lowerer
    from graphopt.precision import Lowering, Outcome
    from graphopt.proof.measure import Comparison
    from graphopt.proof.verify import Verdict, Verifier
    from graphopt.samples.sampling import Samples

    Source = str | Path | Model | onnx.ModelProto | ir.Model


@dataclass(frozen=True)
class Result:
    """The optimized model and the record of how it came about."""

    model: Model
    report: Report

    def save(self, path: str | Path, *, external_data: bool = False) -> None:
        """Write the model; see :meth:`graphopt.model.Model.save`."""
        self.model.save(Path(path), external_data=external_data)


def optimize(source: Source, output: str | Path | None = None, **options: Any) -> Result:
    """Optimize a model for ONNX Runtime, verified and measured against the original.

    Args:
        source: a path, an ``onnx.ModelProto``, an ``onnx_ir.Model``, a :class:`Model`, or what
            ``torch.onnx.export(dynamo=True)`` returns.
        output: where to write the result; ``None`` only returns it.
        options: the fields of :class:`Options`.

    Raises:
        UsageError: unknown pass or target, output over the input without ``in_place``.
        InvalidModelError: the input is no valid model.
        DataError: the samples do not fit the model.
        ParityError: no result could be verified.
    """
    return Compiler(source, Path(output) if output is not None else None, Options(**options)).run()


class Compiler:
    """One run of :func:`optimize`; ``run`` reads as the order of its steps."""

    def __init__(self, source: Source, output: Path | None, options: Options) -> None:
        self.source, self.output, self.options = source, output, options
        self.target = Target.named(options.target)
        self.pipeline, self.replayed = options.plan()
        self.stack = ExitStack()

    def run(self) -> Result:
        """Build, verify, measure, save.

        Raises:
            GraphoptError: see :func:`optimize`.
        """
        with self.stack:
            self._open()
            self._begin("optimizing")
            candidate = self.candidates.build(observers=self._observers())
            if self.options.verify:
                candidate = self._settle(candidate)
            if self.options.measure:
                candidate = self._pay(candidate)
            if self.options.precision is not None:
                name = self.options.precision
                candidate = self._lower(candidate, name, registry.precision(name))
            if self.options.store is not None:
                name = f"storage as {self.options.store}"
                candidate = self._lower(candidate, name, registry.store(self.options.store))
            self._suggest_freezing(candidate)
            return self._finish(candidate)

    def _begin(self, stage: str) -> None:
        self.stage = stage
        self.options.progress(stage)

    # Opening.

    def _open(self) -> None:
        self.worker = self.stack.enter_context(self._new_worker())  # first: it imports while the model loads
        self._begin("loading")
        self.original = Model.of(self.source)
        if self.output is not None:
            _check_output(self.original.path, self.output, self.options.in_place)
        self.scratch = Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir=self.worker.folder)))
        self.original_path = self.original.path or self._save_original()
        output = self.output or self.scratch / "candidate.onnx"
        self.candidates = Candidates(
            self.original, self.worker, self.target, self.options, output, self.stack
        )
        self.report = self._new_report()

    def _new_worker(self) -> Worker:
        options = self.options
        return Worker(options.memory_limit, options.time_limit, options.custom_ops)

    def _save_original(self) -> Path:
        path = self.scratch / "original.onnx"
        self.original.save(path)
        return path

    def _new_report(self) -> Report:
        name = str(self.original.path or type(self.source).__name__)
        output = str(self.output) if self.output is not None else None
        report = Report(name, output, str(self.pipeline), self.target.name)
        report.before = Stats.of(self.original)
        report.precision, report.store = self.options.precision, self.options.store
        return report

    def _observers(self) -> list[Observer]:
        options, observers = self.options, list[Observer]()
        if options.verify_each:
            observers += [FingerprintCheck(self.original), self._verify_step]
        if options.print_after is not None:
            observers.append(print_after(options.print_after))
        if options.dump_dir is not None:
            observers.append(dump(options.dump_dir))
        return observers

    def _verify_step(self, step: Pass, model: Model, run: Run, changed: bool) -> None:
        if not changed:
            return
        trial = Candidate(model, run.journal)
        verdict = self._check(trial)
        trial.discard()
        if not verdict.ok:
            raise ParityError(f"pass '{step.name}' breaks parity: {verdict.reason}")

    # Verifying.

    def _samples(self) -> Samples:
        from graphopt.samples.sampling import Samples

        options = self.options
        override = not options.freeze_initializers
        return Samples.of(self.original, options.data, options.shapes, options.seed, override)

    @cached_property
    def _verifier(self) -> Verifier:
        from graphopt.proof.verify import Verifier

        return Verifier(
            self.worker,
            self.original_path,
            self._samples(),
            self._here,
            self.options.threads,
            lambda done, total: self.options.progress(self.stage, done, total),
        )

    def _check(self, candidate: Candidate) -> Verdict:
        if found := self._contradiction(candidate):
            return found
        return self._verifier.check(self.candidates.stage(candidate))

    def _contradiction(self, candidate: Candidate) -> Verdict | None:
        """A failure if onnx infers what the candidate contradicts, and the original does not; else None."""
        from graphopt.proof.inference import contradiction
        from graphopt.proof.verify import Verdict

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

    def _settle(self, candidate: Candidate) -> Candidate:
        """Leave out guilty rewrites one by one, until what is left is verified."""
        self._begin("verifying")
        verdict = self._check(candidate)
        while not verdict.ok:
            if not candidate.journal.rewrites:
                raise ParityError(
                    f"the rewritten file differs although no rewrite was made: {verdict.reason}"
                )
            self._leave_out_guilty(candidate)
            self._begin("verifying")
            candidate = self.candidates.build()
            verdict = self._check(candidate)
        self.report.verdict = verdict
        return candidate

    def _leave_out_guilty(self, candidate: Candidate) -> None:
        """Bisect over the number of rewrites for the first that breaks parity."""
        candidate.discard()

        def failure(count: int) -> str:
            self._begin(f"bisecting {len(candidate.journal.rewrites)} rewrites (the first {count})")
            trial = self.candidates.build(limit=count)
            try:
                return self._failure(trial)
            finally:
                trial.discard()

        guilty = first_failure(len(candidate.journal.rewrites), lambda count: bool(failure(count)))
        reason = f"breaks parity: {failure(guilty)}"
        self.candidates.left_out.append(LeftOut(candidate.journal.rewrites[guilty - 1], reason))

    def _failure(self, trial: Candidate) -> str:
        """Why a candidate fails and the first tensor that diverges; empty when it passes."""
        verdict = self._check(trial)
        if verdict.ok:
            return ""
        first = self._verifier.first_divergence(self.candidates.stage(trial), verdict)
        return f"{verdict.reason}{f'; first diverging tensor: {first}' if first else ''}"

    # Measuring.

    def _pay(self, candidate: Candidate) -> Candidate:
        """Keep what is not slower: the candidate, else it without one of its rules, else the original."""
        if not candidate.journal.rewrites or not self._runnable():
            return candidate
        self._begin("measuring")
        try:
            comparison = self._compare(self.original_path, candidate)
        except WorkerError as error:
            self.report.notes.append(f"not measured: {error}")
            return candidate
        if comparison.verdict != "slower":
            return self._keep(candidate, comparison)
        for rule, _ in candidate.journal.counts().most_common():
            trial = self.candidates.build(without=rule)
            faster = self._compare(self.original_path, trial)
            if faster.verdict != "slower" and self._verified_again(trial):
                candidate.discard()
                self.candidates.left_out += [
                    LeftOut(r, f"slower: {comparison.summary()}") for r in candidate.made_by(rule)
                ]
                return self._keep(trial, faster)
            trial.discard()
        return self._give_up(candidate, comparison)

    def _runnable(self) -> bool:
        """Whether the original can be measured: ONNX Runtime runs it, and has the target's provider here."""
        return self._here == self.target and self._verifier.runnable

    @cached_property
    def _here(self) -> Target:
        """Where candidates run on this machine: the target, or the CPU when its provider is not there."""
        provider = self.target.providers[0]
        if provider in self.worker.providers():
            return self.target
        self.report.notes.append(
            f"{provider} is not available here: run on the CPU instead, and not measured"
        )
        return CPU

    def _verified_again(self, trial: Candidate) -> bool:
        return not self.options.verify or self._check(trial).ok

    def _compare(self, before: Path, candidate: Candidate) -> Comparison:
        from graphopt.proof.measure import compare

        sample = self._verifier.workload()
        return compare(
            before,
            self.candidates.stage(candidate),
            sample,
            target=self.target,
            threads=self.options.threads,
            worker=self.worker,
            memory=True,
        )

    def _keep(self, candidate: Candidate, comparison: Comparison) -> Candidate:
        self.report.comparison = comparison
        return candidate

    def _give_up(self, candidate: Candidate, comparison: Comparison) -> Candidate:
        self.report.kept_original = f"the result was slower: {comparison.summary()}"
        self.report.comparison = comparison
        self.candidates.left_out += [LeftOut(r, "slower") for r in candidate.journal.rewrites]
        candidate.discard()
        original = Candidate(self.original, Journal())
        if self.options.verify:
            self.report.verdict = self._check(original)
        return original

    # Lower precision.

    def _lower(self, candidate: Candidate, precision: str, stage: Lowering) -> Candidate:
        """The candidate in lower precision, or as it is, with the reason."""
        self._begin(f"lowering to {precision}")
        outcome, accuracy = self._lowerer.lower(candidate.model, stage)
        self.report.notes += outcome.notes
        if outcome.model is None:
            self._tell(_undone(outcome.layers, "nothing of it was kept"), accuracy, kept=False)
            return self._not_lowered(candidate, precision, outcome.reason)
        lowered = Candidate(outcome.model, candidate.journal)
        measured = self.options.measure and self._runnable()
        if measured and self.options.convert_io:
            self.report.notes.append("latency is not measured with inputs of another type than the samples'")
        elif measured:
            self._begin("measuring")
            comparison = self._compare(self.original_path, lowered)
            if comparison.verdict == "slower":
                lowered.discard()
                reason = f"the result is slower than the original: {comparison.summary()}"
                self._tell(*_taken_back(outcome, accuracy, reason), kept=False)
                return self._not_lowered(candidate, precision, reason)
            self._keep(lowered, comparison)
        self._tell(outcome.layers, accuracy, kept=True)
        candidate.discard()
        return lowered

    def _tell(self, layers: Iterable[LayerReport], accuracy: AccuracyReport | None, kept: bool) -> None:
        """Report a stage; what an earlier one achieved is not replaced by what this one did not."""
        self.report.layers += layers
        if accuracy is not None and (kept or self.report.accuracy is None):
            self.report.accuracy = accuracy

    @cached_property
    def _lowerer(self) -> Lowerer:
        from graphopt.lowering import Lowerer

        return Lowerer(
            self.original,
            self.original_path,
            self.worker,
            self.target,
            self._here,
            self.options,
            self.options.measure and self._runnable(),
        )

    def _not_lowered(self, candidate: Candidate, precision: str, reason: str) -> Candidate:
        if self.options.strict:
            raise ParityError(f"{precision} is not achieved, so --strict writes nothing: {reason}")
        self.report.notes.append(f"{precision} not achieved, the model stays as it is: {reason}")
        return candidate

    def _suggest_freezing(self, candidate: Candidate) -> None:
        """Say what ``--freeze-initializers`` would gain, when there is something to freeze."""
        graph = candidate.model.ir.graph
        count = sum(value.is_graph_input() for value in graph.initializers.values())
        if count == 0 or candidate.model.ir.ir_version < FIRST_WITH_CONSTANTS:
            return
        gain = "not measured"
        if self.options.measure and self._runnable():
            frozen = self.candidates.build(frozen=True)
            gain = self._compare(self.candidates.stage(candidate), frozen).summary()
            frozen.discard()
        self.report.suggestions.append(
            f"{count} initializers are also inputs, which callers may override; if none does, use"
            f" --freeze-initializers ({gain})"
        )

    # Finishing.

    def _finish(self, candidate: Candidate) -> Result:
        self._check_contract(candidate)
        self._fill_report(candidate)
        if self.options.strict and self.report.evidence != "verified":
            raise ParityError(f"not verified, so --strict writes nothing: {self.report.evidence_detail}")
        if self.output is not None:
            self._begin("saving")
            self._commit(candidate, self.output)
        return Result(candidate.model, self.report)

    def _commit(self, candidate: Candidate, output: Path) -> None:
        """Let the files appear; data files of the model that was there go, if nobody needs them."""
        from graphopt.leftovers import Leftovers

        self.candidates.stage(candidate)
        assert candidate.staged is not None
        leftovers, original = Leftovers.of(output), self.original
        replaced = original.path is not None and output.exists() and output.samefile(original.path)
        candidate.staged.commit()
        self.report.data_files = list(candidate.staged.others)
        self.report.notes += leftovers.remove(() if replaced else original.data_files)

    def _check_contract(self, candidate: Candidate) -> None:
        from graphopt.interface import Interface, differences, notices

        before, after = Interface.of(self.original), Interface.of(candidate.model)
        if self.options.convert_io:
            before, after = before.with_floats(), after.with_floats()
        may_freeze = self.options.freeze_initializers or before.ir_version < FIRST_WITH_CONSTANTS
        frozen = before.overridable - {port.name for port in after.inputs}
        broken = differences(before, after, frozen if may_freeze else ())
        if broken:
            raise InvalidModelError(f"bug: the result breaks the model's interface: {'; '.join(broken)}")
        said = tuple(candidate.journal.notes)
        self.report.notes += [
            text for text in notices(before, after) if not any(note.startswith(text) for note in said)
        ]

    def _fill_report(self, candidate: Candidate) -> None:
        report = self.report
        report.absorb(candidate.journal, candidate.model)
        report.after = Stats.of(candidate.model)
        report.left_out = self.candidates.left_out
        report.notes += self._unanswered()
        if report.verdict is not None:
            report.evidence, report.evidence_detail = report.verdict.status, report.verdict.summary()
        else:
            report.evidence_detail = "no comparison was asked for"

    def _unanswered(self) -> Iterator[str]:
        """What the user asked for and did not get, such as what a misspelt name stands for."""
        from graphopt.samples.synthetic import parse_shapes

        known = {name for node in g.nodes(self.original.ir) for name in (node.op_type, node.name)}
        if unknown := [name for name in self.options.keep if name not in known]:
            yield f"--keep: no node or operator is called {', '.join(map(repr, unknown))}"
        if self.report.comparison is not None and len(parse_shapes(self.options.shapes)) > 1:
            yield "latency was measured at the first --shape only; 'graphopt bench' measures at each"
        wanted = (self.replayed or frozenset()) - {item.rewrite for item in self.candidates.left_out}
        if missed := len(wanted - set(self.report.rewrites)):
            yield f"--replay: {missed} of {len(wanted)} rewrites of the report found no place in this model"


def _taken_back(
    outcome: Outcome, accuracy: AccuracyReport | None, reason: str
) -> tuple[list[LayerReport], AccuracyReport | None]:
    """What is told of a result that the last measurement contradicts."""
    layers = _undone(outcome.layers, "the whole is slower than the original")
    return layers, accuracy and replace(accuracy, achieved=False, reason=reason)


def _undone(layers: Iterable[LayerReport], why: str) -> list[LayerReport]:
    """What is told of layers whose lower precision is not in the result."""
    return [
        layer
        if layer.precision == "float32"
        else replace(
            layer,
            precision="float32",
            fused=None,
            bytes_after=layer.bytes_before,
            reason=layer.reason or why,
        )
        for layer in layers
    ]


def _check_output(source: Path | None, output: Path, in_place: bool) -> None:
    check_destination(output)
    if source is None or in_place or not output.exists():
        return
    if output.resolve() == source.resolve():
        raise UsageError(f"'{output}' is the input itself; name another output, or allow it with --in-place")
