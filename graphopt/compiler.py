"""``optimize``: load → passes → verify (bisect what breaks parity) → measure (revert what costs) → save."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import registry
from graphopt.errors import InvalidModelError, ParityError, UsageError, WorkerError
from graphopt.files import check_destination
from graphopt.journal import Journal, Rewrite
from graphopt.legacy import FIRST_WITH_CONSTANTS
from graphopt.model import Model
from graphopt.observers import FingerprintCheck, dump, print_after
from graphopt.pipeline import Observer, Pass, Pipeline, Run
from graphopt.progress import Progress, silent
from graphopt.report import LeftOut, Report, Stats, decisions
from graphopt.search import first_failure
from graphopt.target import CPU, Target
from graphopt.worker import Worker

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from graphopt.measure import Comparison
    from graphopt.model import Staged
    from graphopt.samples import Samples
    from graphopt.verify import Verdict, Verifier

    Source = str | Path | Model | onnx.ModelProto | ir.Model

_SAME_RULE_LIMIT = 3


@dataclass(frozen=True)
class Options:
    """How to optimize; the command line has an option for each field.

    Attributes:
        passes: a pipeline, a list of passes and rules, or its spelling; ``None`` takes the default plan.
        target: ``cpu``, ``cuda`` or ``tensorrt``.
        data: the user's samples, see :mod:`graphopt.samples`; ``None`` draws synthetic ones.
        shapes: ``name=1x3x224x224``, for synthetic samples; a name may come several times.
        seed: of the synthetic samples.
        threads: ONNX Runtime's intra-op threads; 0 is its default, one per core.
        keep: operator types and node names that no rewrite may touch.
        freeze_initializers: make initializers that callers could override constant.
        verify, measure: compare with the original; both happen unless switched off.
        strict: a result that is not verified is an error (nothing is written).
        custom_ops: shared libraries of custom operators.
        bisect_limit: allow only so many rewrites.
        replay: a report whose decisions are repeated.
    """

    passes: Any = None
    target: str = "cpu"
    data: str | None = None
    shapes: Sequence[str] = ()
    seed: int = 0
    threads: int = 0
    keep: Sequence[str] = ()
    freeze_initializers: bool = False
    verify: bool = True
    measure: bool = True
    strict: bool = False
    custom_ops: Sequence[Path] = ()
    external_data: bool = False
    in_place: bool = False
    bisect_limit: int | None = None
    verify_each: bool = False
    print_after: str | None = None
    dump_dir: Path | None = None
    replay: Path | None = None
    time_limit: float = 600.0
    memory_limit: int | None = None
    progress: Progress = field(default=silent, repr=False)


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


@dataclass
class Built:
    """A candidate: the rewritten model, how it came about, and its file once it was staged."""

    model: Model
    journal: Journal
    staged: Staged | None = None


class Compiler:
    """One run of :func:`optimize`; ``run`` reads as the order of its steps."""

    def __init__(self, source: Source, output: Path | None, options: Options) -> None:
        self.options, self.output = options, output
        self.target = Target.named(options.target)
        self.pipeline, self.only = self._plan()
        self.stack = ExitStack()
        self.left_out: list[LeftOut] = []
        self.source = source

    def run(self) -> Result:
        """Build, verify, measure, save.

        Raises:
            GraphoptError: see :func:`optimize`.
        """
        with self.stack:
            self._open()
            self._begin("optimizing")
            built = self._build()
            if self.options.verify:
                built = self._settle(built)
            if self.options.measure:
                built = self._pay(built)
            self._suggest_freezing(built)
            return self._finish(built)

    def _begin(self, stage: str) -> None:
        self.stage = stage
        self.options.progress(stage)

    # Opening.

    def _plan(self) -> tuple[Pipeline, frozenset[Rewrite] | None]:
        passes, only = self.options.passes, None
        if self.options.replay is not None:
            passes, only = decisions(self.options.replay)
        pipeline = _pipeline(passes)
        frozen = any(step.name == "freeze-initializers" for step in pipeline.passes)
        if self.options.freeze_initializers and not frozen:
            pipeline = Pipeline([registry.make("freeze-initializers"), *pipeline.passes])
        names = {"all", *(step.name for step in pipeline.passes)}
        if self.options.print_after is not None and self.options.print_after not in names:
            raise UsageError(f"--print-after: '{self.options.print_after}' is none of the passes that run")
        return pipeline, only

    def _open(self) -> None:
        self.worker = self.stack.enter_context(self._new_worker())  # first: it imports while the model loads
        self._begin("loading")
        self.original = Model.of(self.source)
        if self.output is not None:
            _check_output(self.original.path, self.output, self.options.in_place)
        self.scratch = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-")))
        self.original_path = self.original.path or self._save_original()
        name = str(self.original.path or type(self.source).__name__)
        output = str(self.output) if self.output is not None else None
        self.report = Report(name, output, str(self.pipeline), self.target.name)
        self.report.before = Stats.of(self.original)

    def _new_worker(self) -> Worker:
        options = self.options
        return Worker(options.memory_limit, options.time_limit, options.custom_ops)

    def _save_original(self) -> Path:
        path = self.scratch / "original.onnx"
        self.original.save(path)
        return path

    # Building.

    def _build(self, limit: int | None = None, without: str | None = None, first: str | None = None) -> Built:
        """A candidate: at most ``limit`` rewrites, ``without`` one rule, after one more pass ``first``."""
        limit = limit if limit is not None else self.options.bisect_limit
        rules = self._skipped_rules() | ({without} if without else set())
        journal = Journal(limit, self._skipped(), frozenset(rules), self.only)
        model = self.original.clone()
        run = Run(self.target, self.worker, journal, frozenset(self.options.keep))
        before = [registry.make(first)] if first else []
        Pipeline([*before, *self.pipeline.passes], self._observers(model))(model, run)
        return Built(model, journal)

    def _skipped(self) -> frozenset[Rewrite]:
        return frozenset(item.rewrite for item in self.left_out)

    def _skipped_rules(self) -> set[str]:
        guilty = [item.rewrite.rule for item in self.left_out]
        return {rule for rule in guilty if guilty.count(rule) >= _SAME_RULE_LIMIT}

    def _observers(self, model: Model) -> list[Observer]:
        options, observers = self.options, list[Observer](self.pipeline.observers)
        if options.verify_each:
            observers += [FingerprintCheck(model), self._verify_step]
        if options.print_after is not None:
            observers.append(print_after(options.print_after))
        if options.dump_dir is not None:
            observers.append(dump(options.dump_dir))
        return observers

    def _verify_step(self, step: Pass, model: Model, run: Run, changed: bool) -> None:
        if not changed:
            return
        trial = Built(model, run.journal)
        verdict = self._check(trial)
        _discard(trial)
        if not verdict.ok:
            raise ParityError(f"pass '{step.name}' breaks parity: {verdict.reason}")

    # Verifying.

    def _samples(self) -> Samples:
        from graphopt.samples import Samples

        options = self.options
        override = not options.freeze_initializers
        return Samples.of(self.original, options.data, options.shapes, options.seed, override)

    @cached_property
    def _verifier(self) -> Verifier:
        from graphopt.verify import Verifier

        return Verifier(
            self.worker,
            self.original_path,
            self._samples(),
            self._here,
            self.options.threads,
            lambda done, total: self.options.progress(self.stage, done, total),
        )

    def _stage(self, built: Built) -> Staged:
        if built.staged is None:
            path = self.output or self.scratch / "candidate.onnx"
            options = self.options
            staged = built.model.stage(path, external_data=options.external_data, in_place=options.in_place)
            built.staged = self.stack.enter_context(staged)
        return built.staged

    def _check(self, built: Built) -> Verdict:
        return self._verifier.check(self._stage(built).path)

    def _settle(self, built: Built) -> Built:
        """Leave out guilty rewrites one by one, until what is left is verified."""
        self._begin("verifying")
        verdict = self._check(built)
        while not verdict.ok:
            if not built.journal.rewrites:
                raise ParityError(
                    f"the rewritten file differs although no rewrite was made: {verdict.reason}"
                )
            self._leave_out_guilty(built)
            self._begin("verifying")
            built = self._build()
            verdict = self._check(built)
        self.report.verdict = verdict
        return built

    def _leave_out_guilty(self, built: Built) -> None:
        """Bisect over the number of rewrites for the first that breaks parity."""
        _discard(built)

        def failure(count: int) -> str:
            self._begin(f"bisecting {len(built.journal.rewrites)} rewrites (the first {count})")
            trial = self._build(limit=count)
            try:
                return self._failure(trial)
            finally:
                _discard(trial)

        guilty = first_failure(len(built.journal.rewrites), lambda count: bool(failure(count)))
        reason = f"breaks parity: {failure(guilty)}"
        self.left_out.append(LeftOut(built.journal.rewrites[guilty - 1], reason))

    def _failure(self, trial: Built) -> str:
        """Why a candidate fails and the first tensor that diverges; empty when it passes."""
        verdict = self._check(trial)
        if verdict.ok:
            return ""
        first = self._verifier.first_divergence(self._stage(trial).path, verdict)
        return f"{verdict.reason}{f'; first diverging tensor: {first}' if first else ''}"

    # Measuring.

    def _pay(self, built: Built) -> Built:
        """Keep what is not slower: the candidate, else it without one of its rules, else the original."""
        if not built.journal.rewrites or not self._runnable():
            return built
        self._begin("measuring")
        try:
            comparison = self._compare(self.original_path, built)
        except WorkerError as error:
            self.report.notes.append(f"not measured: {error}")
            return built
        if comparison.verdict != "slower":
            return self._keep(built, comparison)
        for rule, _ in built.journal.counts().most_common():
            trial = self._build(without=rule)
            faster = self._compare(self.original_path, trial)
            if faster.verdict != "slower" and self._verified_again(trial):
                _discard(built)
                self.left_out += [LeftOut(r, f"slower: {comparison.summary()}") for r in _of(built, rule)]
                return self._keep(trial, faster)
            _discard(trial)
        return self._give_up(built, comparison)

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

    def _verified_again(self, trial: Built) -> bool:
        return not self.options.verify or self._check(trial).ok

    def _compare(self, before: Path, built: Built) -> Comparison:
        from graphopt.measure import compare

        sample = self._verifier.workload()
        return compare(
            before,
            self._stage(built).path,
            sample,
            target=self.target,
            threads=self.options.threads,
            worker=self.worker,
            memory=True,
        )

    def _keep(self, built: Built, comparison: Comparison) -> Built:
        self.report.comparison = comparison
        return built

    def _give_up(self, built: Built, comparison: Comparison) -> Built:
        self.report.kept_original = f"the result was slower: {comparison.summary()}"
        self.report.comparison = comparison
        self.left_out += [LeftOut(r, "slower") for r in built.journal.rewrites]
        _discard(built)
        return Built(self.original, Journal())

    def _suggest_freezing(self, built: Built) -> None:
        """Say what ``--freeze-initializers`` would gain, when there is something to freeze."""
        graph = built.model.ir.graph
        count = sum(value.is_graph_input() for value in graph.initializers.values())
        if count == 0 or built.model.ir.ir_version < FIRST_WITH_CONSTANTS:
            return
        gain = "not measured"
        if self.options.measure and self._runnable():
            frozen = self._build(first="freeze-initializers")
            gain = self._compare(self._stage(built).path, frozen).summary()
            _discard(frozen)
        self.report.suggestions.append(
            f"{count} initializers are also inputs, which callers may override; if none does, use"
            f" --freeze-initializers ({gain})"
        )

    # Finishing.

    def _finish(self, built: Built) -> Result:
        self._check_contract(built)
        self._fill_report(built)
        if self.options.strict and self.report.evidence != "verified":
            raise ParityError(f"not verified, so --strict writes nothing: {self.report.evidence_detail}")
        if self.output is not None:
            self._begin("saving")
            self._stage(built).commit()
        return Result(built.model, self.report)

    def _check_contract(self, built: Built) -> None:
        from graphopt.interface import Interface, differences, notices

        before, after = Interface.of(self.original), Interface.of(built.model)
        may_freeze = self.options.freeze_initializers or before.ir_version < FIRST_WITH_CONSTANTS
        frozen = before.overridable - {port.name for port in after.inputs}
        broken = differences(before, after, frozen if may_freeze else ())
        if broken:
            raise InvalidModelError(f"bug: the result breaks the model's interface: {'; '.join(broken)}")
        said = tuple(built.journal.notes)
        self.report.notes += [
            text for text in notices(before, after) if not any(note.startswith(text) for note in said)
        ]

    def _fill_report(self, built: Built) -> None:
        report = self.report
        report.absorb(built.journal)
        report.after = Stats.of(built.model)
        report.left_out = self.left_out
        if report.verdict is not None:
            report.evidence, report.evidence_detail = report.verdict.status, report.verdict.summary()
        else:
            report.evidence_detail = "no comparison was asked for"


def _pipeline(passes: Any) -> Pipeline:
    if passes is None:
        return registry.plan()
    if isinstance(passes, Pipeline):
        return passes
    return registry.parse(passes) if isinstance(passes, str) else Pipeline(passes)


def _check_output(source: Path | None, output: Path, in_place: bool) -> None:
    check_destination(output)
    if source is None or in_place or not output.exists():
        return
    if output.resolve() == source.resolve():
        raise UsageError(f"'{output}' is the input itself; name another output, or allow it with --in-place")


def _discard(built: Built) -> None:
    if built.staged is not None:
        built.staged.discard()
        built.staged = None


def _of(built: Built, rule: str) -> list[Rewrite]:
    return [rewrite for rewrite in built.journal.rewrites if rewrite.rule == rule]
