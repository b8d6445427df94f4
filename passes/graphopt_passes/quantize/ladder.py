"""Steps that make a placement more accurate and no slower, each taken only if outputs are closer after it.

Smoothed channels, fitted weights, biases that make up for shifts of the mean, and biases corrected layer
after layer. Samples of the calibration decide, to which no weight was fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from graphopt.model import Model
from graphopt.precision import Task
from graphopt.proof.evaluation import HeldOut
from graphopt_passes.quantize.calibrate import Gather
from graphopt_passes.quantize.draft import Drafts, layers_of
from graphopt_passes.quantize.fit import fitted
from graphopt_passes.quantize.frontier import Nodes
from graphopt_passes.quantize.placement import Placement
from graphopt_passes.quantize.ranges import Range
from graphopt_passes.quantize.sensitivity import noise
from graphopt_passes.quantize.sequential import corrected
from graphopt_passes.quantize.shares import Shares
from graphopt_passes.quantize.smoothing import smoothed
from graphopt_passes.quantize.spelled import assemble

# Samples for the means of outputs.
MEANS = 32
# Smoothing moves all weights, so a little less noise on few samples is no reason: what must be left at most.
_WORTH = 0.95


@dataclass
class Ladder:
    """Climbs for one placement.

    Attributes:
        task: what to work with.
        nodes: what computes on integers.
        gather: answers requests about the float model.
        ranges: of the values of a float model that computes the same.
    """

    task: Task
    nodes: Nodes
    gather: Gather
    ranges: Callable[[Model, Gather], Mapping[str, Range]]
    _noises: dict[Drafts, float] = field(default_factory=dict)

    def climb(self, drafts: Drafts) -> Drafts:
        """The drafts after all steps that help."""
        return self._fitted(self._smoothed(drafts))

    @cached_property
    def shares(self) -> Shares:
        """The samples that weights are fitted to, and those that choose."""
        return Shares.of(self.task)

    @cached_property
    def _chooser(self) -> HeldOut:
        return self.shares.chooser(self.task)

    def _smoothed(self, drafts: Drafts) -> Drafts:
        """Drafts of an equal float model whose channels are more alike."""
        self.task.progress("smoothing channels")
        base = drafts.model.clone()
        assemble(base, drafts.wholes, self.nodes)  # a factor within would keep what is on floats in pieces
        model = smoothed(base, self.task.new_run(), self.gather)
        if model is None:
            return drafts
        gather = partial(self.task.collector.collect, model, samples=self.shares.fitting)
        ranges = self.ranges(model, gather)
        smooth = Drafts(self.task, model, ranges, drafts.bits, smoothed=True, wholes=drafts.wholes)
        return smooth if self._noise(smooth) < _WORTH * self._noise(drafts) else drafts

    def _fitted(self, drafts: Drafts) -> Drafts:
        """The drafts with fitted weights and biases."""
        self.task.progress("fitting weights")
        placement = Placement(drafts.model, self.task.new_run())
        names, samples = layers_of(placement, self.nodes), self.shares.fitting
        found = fitted(drafts.model, placement, names, self.task.collector, samples, drafts.bits)
        biased = replace(drafts, weights=found.weights, biases=found.biases)
        better = self._quieter(drafts, biased, replace(drafts, weights=found.weights))
        few = samples[:: -(-len(samples) // MEANS)]
        return self._quieter(better, corrected(better, self.nodes, self.task.collector, few))

    def _quieter(self, *tried: Drafts) -> Drafts:
        """The drafts with the least noise, the first of equal ones."""
        return min(tried, key=self._noise)

    def _noise(self, drafts: Drafts) -> float:
        """Measured once: each step starts from what the step before has compared."""
        if drafts not in self._noises:
            draft = drafts.build(self.nodes)
            self._noises[drafts] = noise(self._chooser.score(draft.path))
            draft.discard()
        return self._noises[drafts]
