"""``--precision fp16`` and ``bf16``: half precision for GPUs, as far as the accuracy budget allows.

Ranges of all values from the calibration samples tell what must stay float. The rest becomes half, and is
judged with every half value rounded as a GPU rounds it; if the budget is missed, the nodes that cost most
return to float, as few as possible.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from graphopt import graph as g
from graphopt.activations import Statistics
from graphopt.errors import DataError, WorkerError
from graphopt.model import Model
from graphopt.precision import Outcome, Task
from graphopt.proof.inference import infers
from graphopt.target import REFERENCE
from graphopt_passes.halve.biases import dequantize_biases
from graphopt_passes.halve.convert import Halved
from graphopt_passes.halve.hazards import beyond, hazards, requests, sizes
from graphopt_passes.halve.kernels import lacking, name_all
from graphopt_passes.halve.layer_report import Findings
from graphopt_passes.halve.masks import soften
from graphopt_passes.halve.opset import raise_for
from graphopt_passes.halve.search import Names, rank, regions, smallest
from graphopt_passes.halve.trials import Judged, Trials
from graphopt_passes.quantize.draft import macs_share
from graphopt_passes.quantize.sensitivity import decibels

_STORE = {
    "float16": "--store fp16 halves the file, and leaves the latency as it is",
    "bfloat16": "--store bf16 halves the file, and leaves the latency as it is",
}
_UNTRIED = {
    "float16": "float16 was checked and judged on the CPU: whether it pays is not known",
    "bfloat16": "bfloat16 was judged by rounding and never run, since the CPU has no kernels for it: whether"
    " it loads and pays is not known",
}
_NOTHING = 1e-11  # noise power of a node that was not rounded at all
_BLAMED = 32  # nodes of which the noise is measured one by one


def fp16(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return _Search(task, "float16").run()


def bf16(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return _Search(task, "bfloat16").run()


@dataclass
class _Search:
    """One run; its methods stand in the order in which they are needed."""

    task: Task
    half: str
    notes: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    noises: dict[str, float] = field(default_factory=dict)

    def run(self) -> Outcome:
        """The steps."""
        on_cpu, store = self.task.options.target == "cpu", _STORE[self.half]
        if on_cpu and self.half == "bfloat16":
            return Outcome(None, "ONNX Runtime has no kernels for bfloat16 on CPUs", notes=(store,))
        self.model = self.task.new_model()
        raise_for(self.model, self.task.new_run(), self.half)
        if not on_cpu:
            dequantize_biases(self.model, self.task.new_run())
        try:
            self._find_hazards()
        except DataError as error:
            if not self.task.division.calibration.is_synthetic:
                raise
            return Outcome(None, f"drawn samples do not run; give some with --data, or --shape: {error}")
        if on_cpu and (reason := self._no_faster()):
            return Outcome(None, reason, notes=(*self.notes, store))
        while self._is_there and (unfit := self._without_kernel()):
            self.reasons |= unfit
        judged = self.trials.judged(self.reasons)
        if not judged.halved.nodes:
            return self._refuse(f"no node can be {self.half}", judged)
        found = judged if judged.holds else self._searched(judged)
        if not (found.holds and found.halved.nodes):
            return self._refuse(f"no part in {self.half} keeps the budget: {judged.reason}", judged)
        return self._accept(found)

    # What must stay float.

    def _find_hazards(self) -> None:
        statistics = self._gathered()
        if raised := soften(self.model, self.task.new_run(), self.half, statistics):
            self.notes += raised
            statistics = self._gathered()
        run = self.task.new_run()
        named = [g.output_name(node) for node in g.nodes(self.model.ir) if run.keeps(node)]
        kept = dict.fromkeys(named, "it is to be kept (--keep)")
        self.reasons = {**hazards(self.model, run, self.half, statistics), **kept}
        self.statistics = statistics

    def _without_kernel(self) -> dict[str, str]:
        """Some more nodes that the runtime here has no half kernel for; empty if there are none."""
        worker, (model, halved, _) = self.task.worker, self.trials.build(self.reasons)
        name_all(model.ir)
        try:
            with (
                worker.pool.written(model) as path,
                worker.opened(path, self.task.target, self.task.options.threads),
            ):
                return {}
        except WorkerError as error:
            found = lacking(str(error), model.ir, self.model.ir, halved.nodes)
        return dict.fromkeys(
            found, f"ONNX Runtime has no kernel for it in {self.half} on {self.task.target.name}"
        )

    def _gathered(self) -> Statistics:
        return self.task.collector.collect(self.model, requests(self.model), self.task.division.calibration)

    @cached_property
    def trials(self) -> Trials:
        """Tries of the float model."""
        return Trials(self.task, self.model, self.half, sizes(self.statistics), self._interface[0])

    # CPUs.

    def _no_faster(self) -> str:
        """Why half is pointless on this CPU, by a measurement; empty if it is faster after all."""
        told = "on CPUs ONNX Runtime computes float16 as float, between Casts of its own"
        if not self.task.measured:
            return f"{told} (not measured)"
        self.task.progress("measuring float16 on this CPU")
        path = self.task.write(self.trials.build(self.reasons)[0])
        try:
            found = self.task.compare(self.task.float_path, path)
        except WorkerError as error:
            return f"{told}, and cannot run this model: {error}"
        return "" if found.pays else f"{told}: {found.summary()}"

    # Accuracy.

    def _searched(self, missed: Judged) -> Judged:
        """The fewest more nodes on float that keep the budget; the last try if none do."""
        order = [name for name in self._order() if name in missed.halved.nodes]
        parts = regions(order)
        noises = {part: self._alone(part, done, len(parts)) for done, part in enumerate(parts)}
        tries: dict[frozenset[str], Judged] = {}

        def holds(kept: frozenset[str]) -> bool:
            self.task.progress(f"returning nodes to float ({len(tries)} tries)")
            if kept not in tries:
                tries[kept] = self.trials.judged({*self.reasons, *kept})
            return tries[kept].holds

        found = smallest(rank(parts, noises), holds)
        if not (holds(found) and tries[found].halved.nodes):
            # Some parts would be half only beside others, and show what they cost only there.
            alone = [part for part in parts if holds(frozenset(part)) and tries[frozenset(part)].halved.nodes]
            most = sorted(alone, key=lambda part: len(tries[frozenset(part)].halved.nodes))[-1:]
            found = smallest(most, holds) if most else found
        holds(found)
        self._blame(found, noises)
        return tries[found]

    def _order(self) -> list[str]:
        return [g.output_name(node) for node in g.nodes(self.model.ir)]

    def _alone(self, part: Names, done: int, total: int) -> float:
        """The noise if only these nodes are half."""
        self.task.progress(f"measuring what {self.half} costs in accuracy", done, total)
        return self.trials.noise([name for name in self._order() if name not in part])

    def _blame(self, kept: frozenset[str], noises: dict[Names, float]) -> None:
        """Name the nodes that return to float, with the noise of each or of its region."""
        for part, noise in noises.items():
            told = f"costs accuracy: {decibels(noise):.1f} dB if it and its neighbours alone are {self.half}"
            self.reasons.update(dict.fromkeys(kept.intersection(part), told))
        for done, name in enumerate(sorted(kept)[:_BLAMED]):
            noise = self._alone((name,), done, min(len(kept), _BLAMED))
            if noise > _NOTHING:  # else it is float, too, where all others are
                self.noises[name] = noise
                self.reasons[name] = f"costs accuracy: {decibels(noise):.1f} dB if it alone is {self.half}"

    # The end.

    def _accept(self, judged: Judged) -> Outcome:
        model, halved, run = self.trials.build(judged.kept)
        path = self.task.write(model)
        if wrong := self._wrong(model, path):
            return self._refuse(wrong, judged)
        if not self._interface[0] and self._is_there:  # floats go in and out while it is judged and measured
            path = self.task.write(replace(self.trials, keep_io=True).build(judged.kept)[0])
        if not (judged := self._run_there(judged, path)).holds:
            return self._refuse(f"run in {self.half}, the result misses the budget: {judged.reason}", judged)
        if self.task.measured and not (measured := self.task.compare(self.task.float_path, path)).pays:
            return self._refuse(f"{self.half} does not pay here: {measured.summary()}", judged)
        if not self._is_there:
            self.notes.append(_UNTRIED[self.half])
        self.notes += [told for told in self._interface[1:] if told]
        self.notes.append(f"{halved.casts} Casts between float and {self.half}")
        if converted := _converted_inputs(model):
            self.notes.append(
                f"{converted:,} of these convert weights that callers may override, in each run: if nobody"
                " does, use --freeze-initializers"
            )
        if self.task.division.calibration.is_synthetic:
            self.notes.append("ranges are those of drawn samples: give real ones with --data")
        self.notes += [note for note in run.journal.notes if not note.startswith(("opset", "IR version"))]
        share = macs_share(self.model, self.task, halved.nodes)
        if share == 0:
            return self._refuse(f"nothing that multiplies would be {self.half}", judged)
        layers = self._findings(halved).describe(halved.nodes)
        return Outcome(model, judged.reason, judged.score, layers, share, tuple(self.notes))

    @cached_property
    def _interface(self) -> tuple[bool, str]:
        """Whether inputs and outputs stay float, and what to say of it; what does not fit into half must."""
        if not self.task.options.convert_io:
            return True, ""
        graph = self.model.ir.graph
        ports = (*graph.inputs, *graph.outputs)
        if told := [why for value in ports if (why := beyond(value, self.half, self.statistics))]:
            return True, f"inputs and outputs stay float: {told[0]}"
        return False, f"float inputs and outputs became {self.half}, as --convert-io asks"

    def _wrong(self, model: Model, path: Path) -> str:
        """What type inference or the runtime say against the result; empty if nothing."""
        if infers(self.model) and not infers(model):
            return "the result contradicts what onnx infers of types and shapes"
        if self.half == "bfloat16" and not self._is_there:
            return ""  # the runtime here could not tell
        where = self.task.target if self._is_there else REFERENCE
        try:
            with self.task.worker.opened(path, where, self.task.options.threads):
                return ""
        except WorkerError as error:
            return f"ONNX Runtime does not load the result: {error}"

    @property
    def _is_there(self) -> bool:
        """Whether the target itself runs here."""
        return self.task.options.target == self.task.target.name

    def _run_there(self, judged: Judged, path: Path) -> Judged:
        """Judged anew by what the target makes of the result, if it runs here."""
        if not self._is_there:
            return judged
        self.task.progress(f"judging {self.half} on {self.task.target.name}")
        try:
            found = self.trials.executed(judged, path)
        except WorkerError as error:
            return replace(judged, holds=False, reason=f"ONNX Runtime cannot run it: {error}")
        keeps_io = self._interface[0]  # else the score is of another interface than what is written
        return found if keeps_io or not found.holds else judged

    def _refuse(self, reason: str, judged: Judged | None = None) -> Outcome:
        layers = self._findings(judged.halved).describe(judged.halved.nodes) if judged else ()
        return Outcome(None, reason, judged.score if judged else None, layers, notes=tuple(self.notes))

    def _findings(self, halved: Halved) -> Findings:
        return Findings(self.model.ir, self.half, halved.able, self.reasons, self.noises)


def _converted_inputs(model: Model) -> int:
    """How many Casts read weights that callers may override."""
    values = [value for value in model.ir.graph.initializers.values() if value.is_graph_input()]
    return sum(g.is_op(use.node, "Cast") for value in values for use in value.uses())
