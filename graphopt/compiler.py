"""``optimize``: load → passes → verify (bisect what breaks parity) → measure (revert what costs) → save."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import graph as g
from graphopt.candidates import Candidate, Candidates
from graphopt.case import Case
from graphopt.errors import InvalidModelError, ParityError, UsageError
from graphopt.legacy import FIRST_WITH_CONSTANTS
from graphopt.model import Model
from graphopt.observers import FingerprintCheck, dump, print_after
from graphopt.options import Options
from graphopt.pipeline import Observer, Pass, Run
from graphopt.report import Report, Stats
from graphopt.runtime.worker import Worker
from graphopt.settling import Settler
from graphopt.stages import stages
from graphopt.storage.files import check_destination
from graphopt.target import Target

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from graphopt.lossy import Lossy

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
        UsageError: unknown option, pass or target, output over the input without ``in_place``.
        InvalidModelError: the input is no valid model.
        DataError: the samples do not fit the model.
        ParityError: no result could be verified.
    """
    return Compiler(source, Path(output) if output is not None else None, Options.of(options)).run()


class Compiler:
    """One run of :func:`optimize`; ``run`` reads as the order of its steps."""

    def __init__(self, source: Source, output: Path | None, options: Options) -> None:
        self.source, self.output, self.options = source, output, options
        self.target = Target.named(options.target)
        self.pipeline, self.replayed = options.plan()
        self.stages = stages(options)
        self.stack = ExitStack()

    def run(self) -> Result:
        """Build, verify, measure, save.

        Raises:
            GraphoptError: see :func:`optimize`.
        """
        with self.stack:
            self.case = case = self._open()
            case.begin("optimizing")
            candidate = case.candidates.build(observers=self._observers())
            settler = Settler(case)
            if self.options.verify:
                candidate = settler.settle(candidate)
            if self.options.measure:
                candidate = settler.pay(candidate)
            if self.stages:
                candidate = self._lossy(case).walk(candidate, self.stages)
            self._suggest_freezing(candidate)
            return self._finish(candidate)

    # Opening.

    def _open(self) -> Case:
        options = self.options
        # First the worker: it imports while the model loads.
        worker = self.stack.enter_context(
            Worker(options.memory_limit, options.time_limit, options.custom_ops)
        )
        options.progress("loading")
        original = Model.of(self.source)
        if self.output is not None:
            _check_output(original.path, self.output, options.in_place)
        scratch = Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir=worker.folder)))
        path = original.path or _saved(original, scratch / "original.onnx")
        output = self.output or scratch / "candidate.onnx"
        candidates = Candidates(original, worker, self.target, options, output, self.stack)
        return Case(original, path, worker, self.target, options, candidates, self._new_report(original))

    def _new_report(self, original: Model) -> Report:
        name = str(original.path or type(self.source).__name__)
        output = str(self.output) if self.output is not None else None
        report = Report(name, output, str(self.pipeline), self.target.name)
        report.before = Stats.of(original)
        report.precision, report.store = self.options.precision, self.options.store
        return report

    @staticmethod
    def _lossy(case: Case) -> Lossy:
        from graphopt.lossy import Lossy

        return Lossy(case)

    def _observers(self) -> list[Observer]:
        options, observers = self.options, list[Observer]()
        if options.verify_each:
            observers += [FingerprintCheck(self.case.original), self._verify_step]
        if options.print_after is not None:
            observers.append(print_after(options.print_after))
        if options.dump_dir is not None:
            observers.append(dump(options.dump_dir))
        return observers

    def _verify_step(self, step: Pass, model: Model, run: Run, changed: bool) -> None:
        if not changed:
            return
        trial = Candidate(model, run.journal)
        verdict = self.case.check(trial)
        trial.discard()
        if not verdict.ok:
            raise ParityError(f"pass '{step.name}' breaks parity: {verdict.reason}")

    def _suggest_freezing(self, candidate: Candidate) -> None:
        """Say what ``--freeze-initializers`` would gain, when there is something to freeze."""
        graph = candidate.model.ir.graph
        count = sum(value.is_graph_input() for value in graph.initializers.values())
        if count == 0 or candidate.model.ir.ir_version < FIRST_WITH_CONSTANTS:
            return
        gain = "not measured"
        if self.options.measure and self.case.runnable:
            frozen = self.case.candidates.build(frozen=True)
            gain = self.case.compare(self.case.candidates.stage(candidate), frozen).summary()
            frozen.discard()
        self.case.report.suggestions.append(
            f"{count} initializers are also inputs, which callers may override; if none does, use"
            f" --freeze-initializers ({gain})"
        )

    # Finishing.

    def _finish(self, candidate: Candidate) -> Result:
        self._check_contract(candidate)
        self._fill_report(candidate)
        if self.options.strict and self.case.report.evidence != "verified":
            raise ParityError(f"not verified, so --strict writes nothing: {self.case.report.evidence_detail}")
        if self.output is not None:
            self.case.begin("saving")
            self._commit(candidate, self.output)
        return Result(candidate.model, self.case.report)

    def _commit(self, candidate: Candidate, output: Path) -> None:
        """Let the files appear; data files of the model that was there go, if nobody needs them."""
        from graphopt.leftovers import Leftovers

        self.case.candidates.stage(candidate)
        assert candidate.staged is not None
        leftovers, original = Leftovers.of(output), self.case.original
        replaced = original.path is not None and output.exists() and output.samefile(original.path)
        candidate.staged.commit()
        self.case.report.data_files = list(candidate.staged.others)
        self.case.report.notes += leftovers.remove(() if replaced else original.data_files)

    def _check_contract(self, candidate: Candidate) -> None:
        from graphopt.interface import Interface, differences, notices

        before, after = Interface.of(self.case.original), Interface.of(candidate.model)
        if self.options.convert_io:
            before, after = before.with_floats(), after.with_floats()
        may_freeze = self.options.freeze_initializers or before.ir_version < FIRST_WITH_CONSTANTS
        frozen = before.overridable - {port.name for port in after.inputs}
        broken = differences(before, after, frozen if may_freeze else ())
        if broken:
            raise InvalidModelError(f"bug: the result breaks the model's interface: {'; '.join(broken)}")
        said = tuple(candidate.journal.notes)
        self.case.report.notes += [
            text for text in notices(before, after) if not any(note.startswith(text) for note in said)
        ]

    def _fill_report(self, candidate: Candidate) -> None:
        report = self.case.report
        report.absorb(candidate.journal, candidate.model)
        report.after = Stats.of(candidate.model)
        report.left_out = self.case.candidates.left_out
        report.notes = list(dict.fromkeys([*report.notes, *self._unanswered()]))
        if report.verdict is not None:
            report.evidence, report.evidence_detail = report.verdict.status, report.verdict.summary()
        else:
            report.evidence_detail = "no comparison was asked for"

    def _unanswered(self) -> Iterator[str]:
        """What the user asked for and did not get, such as what a misspelt name stands for."""
        from graphopt.samples.synthetic import parse_shapes

        known = {name for node in g.nodes(self.case.original.ir) for name in (node.op_type, node.name)}
        if unknown := [name for name in self.options.keep if name not in known]:
            yield f"--keep: no node or operator is called {', '.join(map(repr, unknown))}"
        if self.case.report.comparison is not None and len(parse_shapes(self.options.shapes)) > 1:
            yield "latency was measured at the first --shape only; 'graphopt bench' measures at each"
        wanted = (self.replayed or frozenset()) - {item.rewrite for item in self.case.candidates.left_out}
        if missed := len(wanted - set(self.case.report.rewrites)):
            yield f"--replay: {missed} of {len(wanted)} rewrites of the report found no place in this model"


def _saved(model: Model, path: Path) -> Path:
    model.save(path)
    return path


def _check_output(source: Path | None, output: Path, in_place: bool) -> None:
    check_destination(output)
    if source is None or in_place or not output.exists():
        return
    if output.resolve() == source.resolve():
        raise UsageError(f"'{output}' is the input itself; name another output, or allow it with --in-place")
