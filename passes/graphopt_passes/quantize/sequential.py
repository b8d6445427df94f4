"""Sequential bias correction: each layer takes back the mean error of its own output, and of all before it.

With the float layer's output y and the quantized one's ŷ, the bias becomes b + E(y) − E(ŷ), channel by
channel (Nagel et al. 2019, §4.2), where ŷ is of the model in which the layers before are corrected. That
takes a run of the samples for each layer, so deep models go without; correcting neighbours together is no
way out, since each would make up for the errors of those before it once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.activations import Collector, Request, Statistics
from graphopt.model import Model
from graphopt.runtime.means import Mean
from graphopt_passes.quantize.bias_correction import corrected_bias
from graphopt_passes.quantize.draft import Drafts
from graphopt_passes.quantize.placement import Part, Placement

MOST_LAYERS = 24
_Biases = dict[str, NDArray[np.float32]]


def corrected(
    drafts: Drafts, nodes: Collection[str], collector: Collector, samples: Iterable[Mapping[str, Any]]
) -> Drafts:
    """The drafts with biases that bring the means of all layers' outputs back to those of the float model."""
    placement = Placement(drafts.model, drafts.task.new_run())
    parts = _in_order(drafts.model, placement, nodes)
    if len(parts) > MOST_LAYERS:
        return drafts
    wanted = collector.collect(drafts.model, map(_request, parts), samples)
    for part in parts:
        found = collector.collect(drafts.build(nodes).model, [_request(part)], samples)
        biases = _shifted(part, drafts.biases, wanted, found)
        drafts = replace(drafts, biases={**drafts.biases, **biases})
    return drafts


def _in_order(model: Model, placement: Placement, nodes: Collection[str]) -> list[Part]:
    """The layers that add a bias, or could, in the order of their graphs."""
    parts = [part for name, part in placement.parts.items() if name in nodes]
    order = {node: index for index, node in enumerate(g.nodes(model.ir))}
    layers = (part for part in parts if part.weight is not None and part.has_bias)
    return sorted(layers, key=lambda part: order[part.node])


def _request(part: Part) -> Request:
    """The mean of what the layer gives before any Relu, by channels."""
    node = part.nodes[1] if part.node.op_type == "MatMul" else part.node
    return Request(g.output_name(node), Mean(1 if part.node.op_type == "Conv" else -1))


def _shifted(part: Part, old: Mapping[str, Any], wanted: Statistics, found: Statistics) -> _Biases:
    request = _request(part)
    real, now = (one.get(request.value, request.kind) for one in (wanted, found))
    if real is None or now is None:
        return {}
    return {part.name: corrected_bias(old.get(part.name, g.array(part.bias)), real.mean, now.mean)}
