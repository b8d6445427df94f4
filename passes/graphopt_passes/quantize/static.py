"""``--precision int8``: integers where they pay on this machine, as far as the accuracy budget allows.

Ranges from the calibration samples; a first draft with all parts on integers, which the fusion audit prunes;
the fastest placement by minimum cuts of measured times, confirmed by interleaved measurements; weights fitted
to the inputs of their layers; and if the budget is missed, the next placements on the frontier of latency
against accuracy, until one keeps it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from graphopt import graph as g
from graphopt.activations import Request, Statistics
from graphopt.calibration import Calibration
from graphopt.model import Model
from graphopt.precision import BATCH, Outcome, Task, Trial
from graphopt.runtime.accumulators import Extent, Histogram
from graphopt.runtime.cpu import cpu
from graphopt_passes.exact.raise_opset import raised
from graphopt_passes.quantize.calibrate import Gather, find_ranges
from graphopt_passes.quantize.draft import Draft, Drafts, layers_of, macs_share
from graphopt_passes.quantize.frontier import Judged, Nodes, first_kept, miscompiled, nested
from graphopt_passes.quantize.fusable import KERNELS, STYLES, UNFIT
from graphopt_passes.quantize.ladder import Ladder
from graphopt_passes.quantize.layer_report import Findings
from graphopt_passes.quantize.lookups import with_tables
from graphopt_passes.quantize.mixed import with_dynamic
from graphopt_passes.quantize.partition import cheapest
from graphopt_passes.quantize.placement import Placement, consistent, saturates
from graphopt_passes.quantize.ranges import Form, Range
from graphopt_passes.quantize.recognize import recognize
from graphopt_passes.quantize.sensitivity import blame, noise, sensitivities
from graphopt_passes.quantize.spelled import spell
from graphopt_passes.quantize.timing import Timing

OPSET = 13
_REFINEMENTS = 3
# Of the speed gained, the share that is given up for accuracy, and the noise that must then be left at most.
_CHEAP = 0.1
_WORTH = 0.8


def lower(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return _Search(task).run()


@dataclass
class _Search:
    """One run; its methods stand in the order in which they are needed."""

    task: Task
    notes: list[str] = field(default_factory=list)

    def run(self) -> Outcome:
        """The steps."""
        if self.task.options.target in UNFIT:
            return Outcome(None, UNFIT[self.task.options.target])
        model = self.task.new_model()
        reason = raised(model, self.task.new_run(), OPSET)
        if reason is not None:
            return Outcome(None, f"int8 needs opset {OPSET}, and {reason}")
        self.model = model
        wholes = spell(model, self.task.new_run()) if "Mul" in KERNELS[self.task.options.target] else {}
        if (found := recognize(model.ir)) is not None:
            self.notes.append(str(found))
        placement = self.placement = Placement(model, self.task.new_run())
        self.findings = Findings(model, placement, audited=self._audits, wholes=wholes)
        if not layers_of(placement, placement.parts):
            return self._refuse("there is no layer with an integer kernel")
        ranges = self._ranges(model, self._gather)
        self.findings.statistics = self.calibration.statistics
        self._save()
        self.drafts = Drafts(self.task, model, ranges, self._bits(), wholes=wholes)
        chosen = self._audited(self._ready())
        if not chosen:
            return self._refuse("nothing fuses into integer kernels")
        fast = self._fastest(chosen)
        if fast is None:
            return self._dynamic_only()
        return self._within_budget(fast.nodes)

    def _bits(self) -> int:
        found = cpu()
        if found.weight_bits < 8:
            self.notes.append(f"weights have 7 bits, since this CPU ({found}) would saturate with 8")
        return found.weight_bits

    # Ranges.

    @cached_property
    def calibration(self) -> Calibration:
        """Statistics of the float model, of this run or of an earlier one."""
        options, task = self.task.options, self.task
        found = Calibration(self.model, task.division.calibration, self.task.collector)
        if options.calibration is not None:
            found.load(options.calibration)
        return found

    def _save(self) -> None:
        """Keep the statistics that there are, for the next run."""
        if self.task.options.save_calibration is not None:
            self.calibration.save(self.task.options.save_calibration)

    def _gather(self, requests: Iterable[Request]) -> Statistics:
        return self.calibration.gather(requests)

    def _ranges(self, model: Model, gather: Gather) -> Mapping[str, Range]:
        values = self.placement.on_grids(self.placement.parts)
        values += [v for part in self.placement.parts.values() for v in part.outputs]
        style = STYLES[self.task.options.target]
        forms = {value.name or "": Form(style.signed, style.symmetric) for value in values}
        found = find_ranges(model, forms, gather, self.task.options.ranges)
        self.absent = found.absent
        return found.found

    def _ready(self) -> Nodes:
        """The parts whose values have ranges that saturate as their Relu or Clip does."""
        chosen = set(self.placement.parts)
        grids, reasons = self.drafts.grids, self.findings.reasons
        for name, part in self.placement.parts.items():
            touched = [v for v in (*part.inputs, *part.outputs) if g.constant(v) is None]
            missing = [v.name for v in touched if v.name not in grids]
            if missing:
                why = self.absent.get(missing[0] or "", "it was not watched")
                reasons[name] = f"'{missing[0]}' has no range: {why}"
                chosen.discard(name)
                continue
            grid = grids[part.outputs[0].name or ""]
            if not saturates(part, grid.low, grid.high):
                reasons[name] = "its grid does not saturate as the Relu or Clip behind it does"
                chosen.discard(name)
        return consistent(self.placement, chosen)

    def _audited(self, chosen: Nodes) -> Nodes:
        """The parts that really become integer kernels; only the target's own runtime can tell."""
        if not self._audits:
            return chosen
        while True:  # each round has fewer parts
            self.task.progress("auditing what fuses")
            draft = self.drafts.build(chosen)
            failed = self._failed(draft)
            if not failed:
                return draft.nodes
            self.findings.reasons.update(failed)
            chosen = consistent(self.placement, draft.nodes - failed.keys())

    @property
    def _audits(self) -> bool:
        return self.task.options.target == self.task.target.name

    def _failed(self, draft: Draft) -> dict[str, str]:
        found = {}
        for problem in draft.audit.problems:
            for name in draft.nodes:
                part = self.placement.parts[name]
                names = {g.output_name(node) for node in part.nodes}
                if problem.kind != "useless" and problem.unit in names:
                    found[name] = problem.reason
        return found

    # Speed.

    def _fastest(self, chosen: Nodes) -> Draft | None:
        """The draft that beats the float model by most, or ``None`` if none beats it."""
        if not self.task.measured:
            self.notes.append("int8 was not measured against floats: whether it pays is not known")
            return self.drafts.build(chosen)
        tried = self._tried(chosen)
        measured = [(self._measure(draft), draft) for draft in tried]
        best, draft = max(measured, key=lambda pair: pair[0].ratio)
        for other in tried:
            other.discard()
        if best.pays:
            return draft
        self._slow = f"int8 does not pay on this machine: at best {best.summary()}"
        return None

    def _tried(self, chosen: Nodes) -> list[Draft]:
        """All parts, and what minimum cuts of the measured times choose of them."""
        timing = self.findings.timing = Timing(self.placement, self._elements())
        self.task.progress("measuring where integers pay")
        timing.learn(self.drafts.build(()).profiles, frozenset())
        found: dict[Nodes, Draft] = {}
        for _ in range(_REFINEMENTS + 1):
            draft = self.drafts.build(chosen)
            if draft.nodes in found or not draft.nodes:
                break
            found[draft.nodes] = draft
            timing.learn(draft.profiles, draft.nodes)
            chosen = self._allowed(cheapest(timing.costs()).integers)
        return list(found.values())

    def _allowed(self, chosen: Collection[str]) -> Nodes:
        return consistent(self.placement, [name for name in chosen if name not in self.findings.reasons])

    def _elements(self) -> list[dict[str, float]]:
        """The elements of each value in each workload, if they grow with those of the inputs."""
        statistics = self.calibration.statistics
        count = max(statistics.samples, 1)
        found = {
            request.value: found.count / count
            for request, found in statistics.found.items()
            if isinstance(request.kind, Histogram | Extent)
        }
        batches = [1.0] + [float(BATCH) for _ in self.task.workloads[1:]]
        return [{name: size * batch for name, size in found.items()} for batch in batches]

    def _measure(self, draft: Draft) -> Trial:
        return self.task.compare(self.task.float_path, draft.path)

    # Accuracy.

    def _within_budget(self, nodes: Nodes) -> Outcome:
        """Climb the ladder; while the budget does not hold, return layers to floats."""
        ladder = Ladder(self.task, nodes, self._gather, self._ranges)
        self.drafts = ladder.climb(self.drafts)
        self._save()
        if self.drafts.smoothed:
            self.findings.statistics = Statistics()  # they are of the channels as they were
            self.notes.append("scales were moved between layers (SmoothQuant)")
        judged = Judged.of(self.task, self.drafts.build(nodes))
        frontier = self._frontier(nodes)
        if judged.kept:
            return self._accept(self._spared(judged, frontier))
        found = first_kept(self.task, frontier, self.drafts.build)
        if found is None:
            return self._refuse(f"no placement keeps the budget: {judged.reason}", judged)
        return self._confirmed(found)

    def _spared(self, judged: Judged, frontier: Sequence[Nodes]) -> Judged:
        """Give up a little of the speed where that saves much of the accuracy."""
        if self.findings.timing is None:
            return judged
        costs = self.findings.timing.costs()
        fast = costs.seconds(judged.draft.nodes)
        most = fast + _CHEAP * (costs.seconds(frozenset()) - fast)
        affordable = [nodes for nodes in frontier if costs.seconds(nodes) <= most]
        draft = self.drafts.build(affordable[-1]) if affordable else None
        if draft is None or not draft.nodes:
            return judged
        trial = Judged.of(self.task, draft)
        better = trial.kept and noise(trial.score) < _WORTH * noise(judged.score)
        if not better or not self._measure(draft).pays:
            return judged
        self._blame(draft.nodes)
        return trial

    def _blame(self, kept: Nodes) -> None:
        """Say which layers are on floats for the accuracy that they would cost."""
        for name, penalty in self.findings.penalties.items():
            if name not in kept:
                self.findings.reasons.setdefault(name, blame(penalty))

    def _dynamic_only(self) -> Outcome:
        """Where no static placement pays, dynamic quantization still may."""
        found = with_dynamic(self.task, self.drafts.build(()).model, self.task.float_path, None)
        return self._finish(found) if found else self._refuse(self._slow)

    def _frontier(self, nodes: Nodes) -> list[Nodes]:
        """Choices among these nodes, from the fastest to the safest."""
        layers = layers_of(self.placement, nodes)
        penalties = sensitivities(self.task, lambda name: self.drafts.build([name]), layers)
        self.findings.penalties = penalties
        timing = self.findings.timing
        return nested(nodes, timing.costs(penalties) if timing else None, penalties)

    def _confirmed(self, judged: Judged) -> Outcome:
        """Accept a slower draft only if it still beats the float model."""
        if self.task.measured:
            found = self._measure(judged.draft)
            if not found.pays:
                return self._refuse(f"what keeps the budget does not pay: {found.summary()}", judged)
        self._blame(judged.draft.nodes)
        return self._accept(judged)

    def _accept(self, judged: Judged) -> Outcome:
        if self.task.measured:
            self.task.progress("measuring dynamic quantization of the rest")
            static = judged.draft
            more = with_dynamic(self.task, static.model, static.path, judged)
            judged = more or judged
        return self._finish(judged)

    def _finish(self, judged: Judged) -> Outcome:
        self.task.progress("rounding tables that are looked up")
        tables = with_tables(self.task, judged)
        if tables is not None:
            judged = tables.judged
            self.notes.append(str(tables))
            self.findings.tables = tables.nodes
        draft = judged.draft
        self.findings.ranges = self.drafts.ranges
        self.notes += miscompiled(self.task, draft)
        found = draft.audit.problems if self._audits else ()
        problems = [problem for problem in found if problem.kind != "useless"]
        self.notes += [f"fusion audit: {problem}" for problem in problems]
        share = macs_share(self.model, self.task, draft.nodes)
        layers = self.findings.describe(draft)
        return Outcome(draft.model, judged.reason, judged.score, layers, share, tuple(self.notes))

    def _refuse(self, reason: str, judged: Judged | None = None) -> Outcome:
        layers = self.findings.describe(None)
        return Outcome(None, reason, judged.score if judged else None, layers, notes=tuple(self.notes))
