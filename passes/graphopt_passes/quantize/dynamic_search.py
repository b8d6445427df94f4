"""``--precision int8-dynamic``: dynamic quantization where it pays, within the accuracy budget.

All nodes that can be are quantized; a minimum cut of the times of both models leaves out what is slower, and
interleaved measurements confirm it. If the budget is missed, the next placements on the frontier of latency
against accuracy follow, until one keeps it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from graphopt import graph as g
from graphopt.precision import Outcome, Task, Trial
from graphopt.proof.accuracy import Score
from graphopt.proof.profile import Profile
from graphopt.report import LayerReport
from graphopt.target import CPU
from graphopt_passes.quantize.draft import Draft, macs_share, profiles_of
from graphopt_passes.quantize.dynamic import candidates, quantize
from graphopt_passes.quantize.frontier import Judged, first_kept, nested
from graphopt_passes.quantize.partition import Choice, Costs, Crossing, cheapest
from graphopt_passes.quantize.sensitivity import blame, decibels, sensitivities

_BEHIND = ("Add", "Mul", "Cast")  # of the product in which a node ends


def lower(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return _Search(task).run()


def _kernels(draft: Draft) -> dict[str, str]:
    """Node → the first output's name of what computes it on integers."""
    makers = {g.output_name(node): node for node in g.nodes(draft.model.ir)}
    return {name: g.output_name(_heavy(makers[name])) for name in draft.nodes}


def _heavy(node: ir.Node) -> ir.Node:
    producer = node.inputs[0].producer() if node.op_type in _BEHIND and node.inputs[0] is not None else None
    return node if producer is None else _heavy(producer)


@dataclass
class _Search:
    """One run; its methods stand in the order in which they are needed."""

    task: Task
    penalties: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def run(self) -> Outcome:
        """The steps."""
        if self.task.options.target != CPU.name:
            return Outcome(None, "dynamic int8 is for CPUs: no other target has kernels for it")
        self.all = self._draft(None)
        self.kernels = _kernels(self.all)
        if not self.all.nodes:
            return self._refuse("no node can be quantized dynamically")
        draft, slow = self._fastest()
        if draft is None:
            return self._refuse(f"dynamic int8 does not pay on this machine: {slow}")
        judged = Judged.of(self.task, draft)
        return self._accept(judged) if judged.kept else self._safer(judged)

    def _draft(self, names: Collection[str] | None) -> Draft:
        model, run = self.task.model.clone(), self.task.new_run()
        draft = Draft(self.task, model, frozenset(quantize(model, run, names)))
        self.refusals.update((refusal.where, refusal.reason) for refusal in run.journal.refusals)
        return draft

    # Speed.

    def _fastest(self) -> tuple[Draft | None, str]:
        """The draft that beats the float model by most, else none and how far the best is from it."""
        if not self.task.measured:
            return self.all, ""
        self.task.progress("measuring where integers pay")
        chosen = cheapest(self._costs()).integers
        tried = [self.all] if chosen in (self.all.nodes, frozenset()) else [self.all, self._draft(chosen)]
        best, draft = max(((self._measure(draft), draft) for draft in tried), key=lambda pair: pair[0].ratio)
        return (draft if best.pays else None), best.summary()

    def _measure(self, draft: Draft) -> Trial:
        return self.task.compare(self.task.float_path, draft.path)

    @cached_property
    def _profiles(self) -> list[tuple[Profile, Profile]]:
        """Of the float model and of the one with all nodes quantized, on each workload."""
        models = (self.task.model, self.all.model)
        return list(zip(*(profiles_of(self.task, model) for model in models), strict=True))

    def _costs(self) -> Costs:
        """Shares of the float model's time, added up over the workloads."""
        nodes = {
            name: Choice(
                sum(floats.units.get(name, 0.0) / floats.seconds for floats, _ in self._profiles),
                sum(dynamic.units.get(kernel, 0.0) / floats.seconds for floats, dynamic in self._profiles),
                self.penalties.get(name, 0.0),
            )
            for name, kernel in self.kernels.items()
        }
        values = [
            Crossing(None, names, sum(d.conversions.get(x, 0.0) / f.seconds for f, d in self._profiles), 0.0)
            for x, names in self._readers().items()
        ]
        return Costs(nodes, values)

    def _readers(self) -> Mapping[str, tuple[str, ...]]:
        """Value → the nodes that share it as their quantized input."""
        found: dict[str, tuple[str, ...]] = {}
        for node in candidates(self.task.model.ir):
            if g.output_name(node) in self.all.nodes and node.inputs[0] is not None:
                x = node.inputs[0].name or ""
                found[x] = (*found.get(x, ()), g.output_name(node))
        return found

    # Accuracy.

    def _safer(self, missed: Judged) -> Outcome:
        """The fastest placement on the frontier that keeps the budget and still pays."""
        names = missed.draft.nodes
        self.penalties = sensitivities(self.task, lambda name: self._draft([name]), sorted(names))
        found = first_kept(self.task, self._frontier(names), self._draft)
        if found is None:
            return self._refuse(f"no placement keeps the budget: {missed.reason}", missed.score)
        if self.task.measured and not (measured := self._measure(found.draft)).pays:
            return self._refuse(f"what keeps the budget does not pay: {measured.summary()}", found.score)
        return self._accept(found)

    def _frontier(self, names: frozenset[str]) -> list[frozenset[str]]:
        """Nested placements within ``names``, the fastest first."""
        return nested(names, self._costs() if self.task.measured else None, self.penalties)

    # The end.

    def _accept(self, judged: Judged) -> Outcome:
        task, draft = self.task, judged.draft
        layers = tuple(self._layers(draft.nodes, draft.audit.fused))
        share = macs_share(task.model, task, draft.nodes)
        notes = () if task.measured else ("int8 was not measured: whether it pays is not known",)
        return Outcome(draft.model, judged.reason, judged.score, layers, share, notes)

    def _refuse(self, reason: str, score: Score | None = None) -> Outcome:
        return Outcome(None, reason, score, tuple(self._layers(frozenset(), frozenset())))

    def _layers(self, chosen: frozenset[str], fused: Collection[str]) -> Iterator[LayerReport]:
        """One report for each node that a way or a reason is known for; ``chosen`` are on integers."""
        for node in candidates(self.task.model.ir):
            name = g.output_name(node)
            inside, penalty = name in chosen, self.penalties.get(name)
            yield LayerReport(
                name,
                node.op_type,
                "int8" if inside else "float32",
                sqnr_db=None if penalty is None else decibels(penalty),
                method="dynamic" if inside else "",
                fused=self.kernels[name] in fused if inside else None,
                float_ms=self._ms(0, name),
                int8_ms=self._ms(1, self.kernels.get(name, "")),
                reason="" if inside else self.refusals.get(g.label(node), self._why(name)),
            )

    def _why(self, name: str) -> str:
        if name in self.penalties:
            return blame(self.penalties[name])
        return "integers would not pay here"

    def _ms(self, which: int, name: str) -> float | None:
        if not self.task.measured or not self.all.nodes:
            return None
        seconds = self._profiles[0][which].units.get(name)
        return None if seconds is None else seconds * 1e3
