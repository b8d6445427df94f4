"""A Pad that surrounds an image with zeros merges into the pads of the operator behind it.

MaxPool has no such rule: its own padding is -∞, not 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.rewrite import Match, Rule, any_, maybe, op

_PAD = op("Pad", any_("x"), maybe("pads"), maybe("value"), maybe("axes"), node="pad")


def _zero_pads(match: Match) -> list[int]:
    """The pads of the matched Pad for the spatial axes, all begins then all ends, in pixels."""
    node = match.node("pad")
    match.require(g.attribute(node, "mode", "constant") == "constant", "the Pad repeats pixels")
    given = match.get("value")
    fill = np.float64(g.attribute(node, "value", 0.0)) if given is None else g.array(given, 1)
    match.require(fill is not None and not fill.any(), "the Pad does not fill with zeros")
    shapes = match.run.shapes(match.model)
    rank = shapes.rank(match["x"])
    match.require(rank is not None and rank > 2, "the rank is not known")
    pads = _given(match, "pads", g.attribute(node, "pads"))
    axes = _given(match, "axes", list(range(rank or 0)))
    begins, ends = [0] * (rank or 0), [0] * (rank or 0)
    for i, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[i], pads[i + len(axes)]
    match.require(min(begins + ends) >= 0, "the Pad crops")
    match.require(not any(begins[:2] + ends[:2]), "the Pad is not spatial only")
    return begins[2:] + ends[2:]


def _given(match: Match, name: str, default: list[int] | None) -> list[int]:
    value = match.get(name)
    found = default if value is None else g.array(value)
    match.require(found is not None, f"the {name} of the Pad are no constant")
    return [int(v) for v in (found if found is not None else ())]


def _own_pads(match: Match, count: int) -> list[int]:
    match.require(
        g.attribute(match.root, "auto_pad", "NOTSET") in ("NOTSET", "VALID"), "it pads by itself (auto_pad)"
    )
    return list(g.attribute(match.root, "pads", None) or [0] * count)


def _with(match: Match, **changed: int | list[int]) -> list[ir.Attr]:
    kept = [a for a in match.root.attributes.values() if a.name not in (*changed, "auto_pad")]
    return [*kept, *ir.convenience.convert_attributes(changed)]


class PadConv(Rule):
    """W∗pad(x, p) with pads q = W∗x with pads p + q."""

    pattern = op("Conv", _PAD, any_("w"), maybe("c"))

    def rewrite(self, match: Match) -> ir.Value:
        """The Conv on the unpadded image."""
        pads = _zero_pads(match)
        own = _own_pads(match, len(pads))
        inputs = [match["x"], *match.root.inputs[1:]]
        return match.op("Conv", inputs, _with(match, pads=[p + q for p, q in zip(pads, own, strict=True)]))


class PadAveragePool(Rule):
    """mean(pad(x, p)) = mean of x with pads p that counts the zeros in."""

    pattern = op("AveragePool", _PAD)

    def rewrite(self, match: Match) -> ir.Value:
        """The AveragePool on the unpadded image, with count_include_pad."""
        pads = _zero_pads(match)
        own = _own_pads(match, len(pads))
        counted = bool(g.attribute(match.root, "count_include_pad", 0))
        match.require(counted or not any(own), "its own padding is not counted in")
        match.require(
            not g.attribute(match.root, "ceil_mode", 0), "its last window may lie outside (ceil_mode)"
        )
        total = [p + q for p, q in zip(pads, own, strict=True)]
        kernel = g.attribute(match.root, "kernel_shape")
        fits = all(pad < size for pad, size in zip(total, [*kernel, *kernel], strict=True))
        match.require(fits, "ONNX Runtime pads less than the kernel's size")
        return match.op("AveragePool", [match["x"]], _with(match, pads=total, count_include_pad=1))
