"""What was decided for each layer, and why, for people."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.activations import Statistics
from graphopt.model import Model
from graphopt.report import LayerReport
from graphopt.runtime.accumulators import Bins, Histogram
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.dynamic import candidates
from graphopt_passes.quantize.placement import Part, Placement
from graphopt_passes.quantize.ranges import Range
from graphopt_passes.quantize.sensitivity import decibels
from graphopt_passes.quantize.spelled import Whole
from graphopt_passes.quantize.timing import Timing


@dataclass
class Findings:
    """What a search has found out.

    Attributes:
        model: the float model.
        placement: its parts.
        ranges: by value name.
        statistics: of the calibration.
        reasons: why a part is not on integers.
        penalties: noise power over signal power when a layer alone is on integers.
        timing: measured seconds; None if nothing was measured.
        audited: whether the runtime here is the target's, and tells what fuses.
        tables: nodes that look up rows of 8 bits.
        wholes: operators that the parts spell out.
    """

    model: Model
    placement: Placement
    ranges: Mapping[str, Range] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)
    reasons: dict[str, str] = field(default_factory=dict)
    penalties: dict[str, float] = field(default_factory=dict)
    timing: Timing | None = None
    audited: bool = True
    tables: Collection[str] = ()
    wholes: Mapping[str, Whole] = field(default_factory=dict)

    def describe(self, draft: Draft | None) -> tuple[LayerReport, ...]:
        """One report for each part and each node that could not be one; ``draft`` is the result, if any."""
        parts = [self._part(part, draft) for part in self.placement.parts.values()]
        refused = [
            LayerReport(name, node.op_type, "float32", reason=self.placement.refusals[name])
            for name, node in self.placement.refused.items()
            if name not in self.tables
        ]
        tables = [LayerReport(name, "Gather", "int8", method="nearest") for name in self.tables]
        return tuple(self._whole((*parts, *self._dynamic(draft), *tables, *refused), draft))

    def _whole(self, layers: Iterable[LayerReport], draft: Draft | None) -> Iterator[LayerReport]:
        """The layers with one in the place of the pieces of an operator that is on floats as a whole."""
        made = {} if draft is None else {g.output_name(one): one.op_type for one in g.nodes(draft.model.ir)}
        wholes = {
            name: whole
            for name, whole in self.wholes.items()
            if draft is None or made.get(name) == whole.op_type
        }
        pieces = frozenset().union(*(whole.pieces for whole in wholes.values()))
        for layer in layers:
            if layer.name in wholes:
                yield replace(layer, op=wholes[layer.name].op_type)
            elif layer.name not in pieces:
                yield layer

    def _dynamic(self, draft: Draft | None) -> Iterator[LayerReport]:
        """Nodes that only dynamic quantization knows."""
        names = draft.dynamic - self.placement.parts.keys() if draft is not None else ()
        for node in candidates(self.model.ir, names):
            yield LayerReport(g.output_name(node), node.op_type, "int8", method="dynamic")

    def _part(self, part: Part, draft: Draft | None) -> LayerReport:
        chosen = draft is not None and part.name in draft.nodes
        output = part.outputs[0]
        dynamic = chosen and draft is not None and part.name in draft.dynamic
        found = self._range(output, draft) if chosen and draft is not None else None
        penalty = self.penalties.get(part.name)
        return LayerReport(
            part.name,
            part.node.op_type,
            "int8" if chosen else "float32",
            sqnr_db=None if penalty is None else decibels(penalty),
            clipped=self._clipped(output, found),
            low=found.low if found else None,
            high=found.high if found else None,
            method="dynamic" if dynamic else found.method if found else "",
            fused=self._fused(part, draft) if chosen and not dynamic else None,
            float_ms=self._ms(part, "floats"),
            int8_ms=self._ms(part, "integers"),
            reason="" if chosen else self.reasons.get(part.name) or self._why(part, draft),
        )

    def _range(self, value: ir.Value, draft: Draft) -> Range | None:
        """What the grid of a value covers, which may be that of another value; None if it is on none."""
        static = draft.nodes - draft.dynamic
        if value not in self.placement.on_grids(static):
            return None
        owner, factor = self.placement.origin(value, static)
        found = self.ranges.get(owner.name or "")
        return found and replace(found, low=found.low * factor, high=found.high * factor)

    def _fused(self, part: Part, draft: Draft | None) -> bool | None:
        """Whether the runtime computes it on integers; None if only another runtime could tell."""
        if not self.audited or draft is None:
            return None
        return part.kernel.role == "scaler" or part.name in draft.audit.fused

    def _why(self, part: Part, draft: Draft | None) -> str:
        if draft is None:
            return "no placement of integers was kept"
        if part.kernel.role != "layer" and self.timing is None:
            return "it stands between no layers on integers"
        return "integers would not pay here"

    def _clipped(self, value: ir.Value, found: Range | None) -> float | None:
        bins: Bins | None = self.statistics.get(value.name or "", Histogram())
        if bins is None or found is None or not bins.count:
            return None
        outside = (bins.centres < found.low) | (bins.centres > found.high)
        return float(np.asarray(bins.counts)[outside].sum() / bins.count)

    def _ms(self, part: Part, what: str) -> float | None:
        known: dict[str, float] = getattr(self.timing.workloads[0], what) if self.timing else {}
        seconds = known.get(part.name)
        return None if seconds is None else seconds * 1e3
