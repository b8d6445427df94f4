"""Which layers may become sparse in a pattern, and why the others stay as they are."""

from __future__ import annotations

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.pruning import Amount
from graphopt.report import PrunedLayer
from graphopt_passes.refit.linear import Linear, linear_layers

TECHNIQUE = "sparsity"


def candidates(model: Model, run: Run, amount: Amount) -> tuple[dict[str, Linear], list[PrunedLayer]]:
    """The layers of a model that may be made sparse by name, and the rows of those that may not."""
    layers: dict[str, Linear] = {}
    refused = []
    for one in linear_layers(model):
        if not isinstance(one, Linear):
            refused.append(PrunedLayer(g.output_name(one[0]), one[0].op_type, TECHNIQUE, reason=one[1]))
        else:
            layers[one.name] = one
    ends = {next(iter(layers), ""), next(reversed(layers), "")} if amount.group else set()
    for name, layer in list(layers.items()):
        if reason := _refusal(layer, run, amount, is_end=name in ends):
            refused.append(PrunedLayer(name, layer.op, TECHNIQUE, numbers_before=layer.size, reason=reason))
            del layers[name]
    return layers, refused


def _refusal(layer: Linear, run: Run, amount: Amount, *, is_end: bool) -> str:
    """Why a layer stays as it is; empty if it need not."""
    inputs = layer.columns // layer.kernel
    if run.keeps(layer.node):
        return "it is to be kept (--keep)"
    if is_end:
        return "the first and the last layer stay dense"
    if amount.group and inputs % amount.group:
        return f"{inputs} inputs of each channel are no multiple of {amount.group}"
    return ""
