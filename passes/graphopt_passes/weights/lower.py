"""``--precision int8-weights`` and ``int4-weights``: blocks of integers, within the accuracy budget.

1. Weights are rounded: fitted to the samples if there are any (gptq), else by what needs none (hqq).
2. Where the runtime has a kernel for blocks of integers, it is timed against the product on floats. What is
   slower as integers is made float when the model is loaded, so that the whole is no slower than it was; so
   is what a kernel would add more noise to than rounding did.
3. If the budget is missed, weights get 8 bits and then all of theirs back, always the one that makes the
   most noise per number, until it holds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphopt.model import Model
from graphopt.precision import Outcome, Task
from graphopt.proof.accuracy import Score
from graphopt.proof.evaluation import HeldOut
from graphopt.report import LayerReport
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.sensitivity import decibels, noise, sensitivities
from graphopt_passes.weights.build import Builder, Site
from graphopt_passes.weights.constants import summed_up
from graphopt_passes.weights.forms import STYLES, Packed
from graphopt_passes.weights.judging import Verdict, judged, slower
from graphopt_passes.weights.places import LEAST
from graphopt_passes.weights.rounds import Rounder
from graphopt_passes.weights.speed import Names, fastest

_WIDER = 256  # times less noise with 8 bits than with 4: steps are 16 times as fine
Weights = Mapping[str, Packed]  # those of a model that are blocks of integers, by name


def int8(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return _Search(task, 8).run()


def int4(task: Task) -> Outcome:
    """See :class:`graphopt.precision.Lowering`."""
    return _Search(task, 4).run()


@dataclass
class _Search:
    """One run; its methods stand in the order in which they are needed."""

    task: Task
    bits: int
    kernels: Names = frozenset()
    penalties: dict[str, float] = field(default_factory=dict)
    scaled: int | None = None  # values whose channels were scaled, if that was asked for

    def run(self) -> Outcome:
        """The steps."""
        self.builder = Builder.of(self.task, self.bits)
        rounder = self._rounder()
        found, self.refusals = self.builder.sites()
        self.sites = {site.name: site for site in self.builder.writable(found, self.bits)}
        if not self.sites:
            return self._refuse(self._nothing())
        self.kernels = self._harmless
        weights: Weights = dict(rounder.packed(self._wanted, self._method))
        if not self.task.options.verify:
            return self._accept(weights, judged(self.task, self._model(weights)))
        weights = self._better(weights, rounder)
        computing = [site for site in self.sites.values() if site.name in self._harmless]
        self.kernels = fastest(self.task, computing, lambda names: self.builder.build(weights.items(), names))
        verdict = judged(self.task, self._model(weights))
        if not verdict.kept:
            return self._safer(weights, rounder, verdict)
        return self._accept(weights, verdict)

    def _rounder(self) -> Rounder:
        """Rounds the weights of the float model, whose channels are scaled first if that was asked for."""
        rounder = Rounder(self.task, self.builder.base, symmetric=not self.builder.has_kernels)
        if self._method != "awq":
            return rounder
        found = rounder.scaled(self.bits)
        self.scaled, self.builder = len(found.values), replace(self.builder, base=found.model)
        return replace(rounder, model=found.model, inputs=found.inputs)

    def _nothing(self) -> str:
        if self.builder.nibbles:
            return f"weights of 4 bits that no kernel reads need opset 21, and {self.builder.nibbles}"
        nothing = f"there is no float32 weight of {LEAST:,} numbers and more that products are summed up with"
        why = summed_up(self.refusals.values())
        return f"{nothing}: {why}" if why else nothing

    @property
    def _wanted(self) -> dict[str, int]:
        """Bits by weight. A table that is looked up has 8 at least, for its rows are no sums of products, in
        which errors cancel, and all that follows computes with them; so has a last product, for its errors
        are those of the model.
        """
        wide = {name for name, site in self.sites.items() if "lookup" in site.ways or site.is_last}
        return {name: 8 if name in wide else self.bits for name in self.sites}

    @property
    def _harmless(self) -> Names:
        """The weights whose kernels make no more noise than the weights: not products where all have 8 bits
        and kernels round what they multiply with to 8 bits as well.
        """
        rounds = self.bits == 8 and STYLES[self.task.options.target].rounds
        return frozenset(
            name
            for name, site in self.sites.items()
            if site.kernel and not (rounds and "product" in site.ways)
        )

    @property
    def _method(self) -> str:
        wanted = self.task.options.rounding
        return wanted if wanted != "auto" else "gptq" if self.task.options.data is not None else "hqq"

    def _model(self, weights: Weights) -> Model:
        return self.builder.build(weights.items(), self.kernels)

    # Accuracy.

    def _better(self, weights: Weights, rounder: Rounder) -> Weights:
        """What was fitted to samples, unless what needs none has less noise on others of the calibration."""
        if self.task.options.rounding != "auto" or self._method != "gptq":
            return weights
        plain = dict(rounder.packed(self._wanted, "hqq"))
        chooser = rounder.shares.chooser(self.task)
        return min((weights, plain), key=lambda tried: noise(self._score(chooser, tried)))

    def _score(self, judge: HeldOut, weights: Weights) -> Score:
        draft = Draft(self.task, self._model(weights), frozenset(weights))
        score = judge.score(draft.path)
        draft.discard()
        return score

    def _safer(self, weights: Weights, rounder: Rounder, missed: Verdict) -> Outcome:
        """The fewest weights with more bits that keep the budget."""
        ladder = list(self._ladder(weights, rounder))
        low, high, best = 0, len(ladder), None
        while low < high:
            middle = (low + high) // 2
            self.task.progress("giving weights more bits", len(ladder) - (high - low), len(ladder))
            verdict = judged(self.task, self._model(ladder[middle]))
            if verdict.kept:
                best, high = (ladder[middle], verdict), middle
            else:
                low = middle + 1
        if best is None or not best[0]:
            return self._refuse(f"no choice of weights keeps the budget: {missed.reason}", missed.score)
        return self._accept(*best)

    def _ladder(self, weights: Weights, rounder: Rounder) -> Iterator[Weights]:
        """Ever more weights with 8 bits, and then with all of theirs."""

        def build(name: str) -> Draft:
            return Draft(self.task, self._model({name: weights[name]}), frozenset([name]))

        self.penalties = sensitivities(self.task, build, list(weights))
        narrow = {name: 8 for name, weight in weights.items() if weight.bits == 4}
        wider = dict(rounder.packed(narrow, "nearest"))
        noisiest = [(-self.penalties[name] / self.sites[name].numbers, name) for name in weights]
        heapq.heapify(noisiest)
        now = dict(weights)
        while noisiest:
            negative, name = heapq.heappop(noisiest)
            if now.pop(name).bits == 4:
                now[name] = wider[name]
                heapq.heappush(noisiest, (negative / _WIDER, name))
            yield dict(now)

    # The end.

    def _accept(self, weights: Weights, verdict: Verdict) -> Outcome:
        model = self._model(weights)
        runs = not (verdict.unknown and self.task.options.verify)  # else it does not fit into memory
        if runs and (found := slower(self.task, model)):
            return self._decoded(weights, found, verdict)
        scaled = [] if self.scaled is None else [f"values whose channels were scaled first: {self.scaled:,}"]
        layers = tuple(self._layers(weights))
        notes = (*verdict.notes, *scaled, self._told(weights), *self._told_halves(layers))
        return Outcome(model, verdict.reason, verdict.score, layers, notes=notes)

    def _decoded(self, weights: Weights, found: str, verdict: Verdict) -> Outcome:
        """The same weights, all made float at load, after a measurement speaks against the kernels."""
        if not self.kernels:
            return self._refuse(f"it is slower: {found}", verdict.score)
        self.kernels = frozenset()
        again = judged(self.task, self._model(weights))
        return self._accept(weights, again) if again.kept else self._refuse(again.reason, again.score)

    def _refuse(self, reason: str, score: Score | None = None) -> Outcome:
        return Outcome(None, reason, score, tuple(self._layers({})))

    def _told(self, weights: Weights) -> str:
        computed = sum(self._computes(self.sites[name]) for name in weights)
        if not self.builder.has_kernels:
            return f"{len(weights):,} weights stand behind DequantizeLinear in blocks"
        told = f"{computed:,} of {len(weights):,} weights are multiplied as integers"
        others = "" if computed == len(weights) else "; the others are made float when the model is loaded"
        return f"{told}{others}"

    def _told_halves(self, layers: Sequence[LayerReport]) -> Iterator[str]:
        """Says so if so many of those that can be rounded stay floats that halves would save as much."""
        before = sum(layer.bytes_before or 0 for layer in layers)
        after = sum(layer.bytes_after or 0 for layer in layers)
        if 2 * after >= before and self.task.options.store is None:
            yield "weights in half precision would be as small and have less error: --store fp16"

    def _computes(self, site: Site) -> bool:
        return self.builder.has_kernels and site.name in self.kernels

    def _layers(self, weights: Weights) -> Iterator[LayerReport]:
        """One report for each weight that was rounded, or that there is a reason against."""
        for site in self.sites.values() if self.sites else ():
            yield self._layer(site, weights.get(site.name))
        for name, reason in self.refusals.items():
            yield LayerReport(name, "", "float32", reason=reason)

    def _layer(self, site: Site, packed: Packed | None) -> LayerReport:
        penalty = self.penalties.get(site.name)
        before = site.numbers * 4
        return LayerReport(
            site.name,
            site.op,
            "float32" if packed is None else f"int{packed.bits}",
            sqnr_db=None if penalty is None else decibels(penalty),
            method="" if packed is None else packed.method,
            fused=True if packed is not None and self._computes(site) else None,
            block=None if packed is None else packed.block,
            bytes_before=before,
            bytes_after=before if packed is None else packed.nbytes,
            reason=self._reason(site, packed),
        )

    def _reason(self, site: Site, packed: Packed | None) -> str:
        if packed is None:
            return "its rounding would cost too much accuracy" if self.penalties else "it was not kept"
        if self._computes(site) or not self.builder.has_kernels:
            return ""
        why = "its kernel would be slower" if site.kernel else "there is no kernel for it"
        if site.kernel and site.name not in self._harmless:
            why = "its kernel would round what it is multiplied with to 8 bits"
        return f"made float when the model is loaded: {why}"
