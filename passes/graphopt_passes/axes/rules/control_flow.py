"""If, Loop and Scan: what goes in or out stays; nodes inside see outer values as all do."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import graph as g
from graphopt_passes.axes.site import Site, rule
from graphopt_passes.axes.space import freeze, side


@rule("If", "Loop", "Scan", "SequenceMap")
def _subgraphs(site: Site) -> None:
    site.freeze_all("passes it to or from a subgraph")
    for graph in g.subgraphs(site.node):
        for value in (*graph.inputs, *graph.outputs):
            _freeze(site, value)


def _freeze(site: Site, value: ir.Value) -> None:
    freeze(side(site.space, value), f"{g.label(site.node)}: passes it to or from a subgraph")
