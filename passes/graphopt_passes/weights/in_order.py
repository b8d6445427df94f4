"""Layers fitted one after the other, each to what the rounded layers before it give.

Fitted all at once, each layer is right for inputs that the result never sees, and errors add up. In the order
of the graph, with the input x̂ of the model that is rounded so far and the output y of the float model,

    W* = W + (Σ(y − W·x̂)·x̂ᵀ)·(Σ x̂·x̂ᵀ + λI)⁻¹

makes up for the layers before (the asymmetric objective of AdaRound, Nagel et al. 2020, eq. 25, solved
before rounding), and is what blocks of integers are then fitted to. Where a bias can be changed, all sums are
about the means, and it takes what is missing of these: b = E(y) − Ŵ·E(x̂).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.activations import Collector
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.accumulators import Array, Doubles
from graphopt.samples.sampling import Sample
from graphopt_passes.quantize.rounding import damped
from graphopt_passes.refit.linear import Linear, layers_of
from graphopt_passes.refit.moments import MOST_COLUMNS, moments
from graphopt_passes.refit.solve import Problem
from graphopt_passes.refit.walk import Walk
from graphopt_passes.weights.blocks import Blocked

RIDGE = 0.1  # λ as a part of the mean of the diagonal: samples do not show everything
Rounding = Callable[[str, Array, Doubles], Blocked]
Rounded = tuple[str, Blocked, NDArray[Any] | None]
"""A weight's name, its blocks, and what is added to the bias of its layer, [channels]."""


def fitted_in_order(
    model: Model, run: Run, collector: Collector, samples: Sequence[Sample], fits: Mapping[str, Rounding]
) -> Iterator[Rounded]:
    """The weights of the layers that read no more than 3,072 columns, each as soon as it is rounded.

    Args:
        model: the float model, not changed.
        run: its record.
        collector: bounds the memory.
        samples: are run once for each layer, or for some that do not read from each other.
        fits: what rounds a weight, by its name: from the name, rows [channels, columns] and moments; it
            raises ``ValueError`` for one that cannot be rounded, which then stays as it is.

    Raises:
        DataError: a sample does not fit, or there is none.
    """
    student = model.clone()
    names = {name: g.input_name(layer.node, 1) for name, layer in layers_of(student).items()}
    layers = [one for one in layers_of(student).values() if names[one.name] in fits and _is_small(one)]
    for layer, pairs in Walk(collector, model, samples).through(student, layers, moments):
        before, name = layer.fit(), names[layer.name]
        problem = Problem.of(pairs.fit + pairs.held, before, shifts=layer.can_shift)
        try:
            found = fits[name](name, made_up(problem), problem.h[0])
        except ValueError:
            continue
        after = problem.with_bias(found.real()[None].astype(np.float64))
        layer.write(student, run, after)
        shift = (after.bias - before.bias)[0] if layer.can_shift else None
        del pairs, problem, before, after  # before the next are gathered
        yield name, found, shift


def made_up(problem: Problem) -> Doubles:
    """W*, float64 [channels, columns], of a layer with one group; rows with zeros stay as they are, for these
    may have been pruned.

    Args:
        problem: of the layer's input in the rounded model, and its output in the float model.
    """
    rows, h = problem.start.rows[0], problem.h[0]
    found = rows + np.linalg.solve(damped(h, RIDGE), problem.t[0] - h @ rows.T).T
    return np.asarray(np.where((rows == 0).any(axis=1, keepdims=True), rows, found), np.float64)


def _is_small(layer: Linear) -> bool:
    return layer.groups == 1 and layer.columns <= MOST_COLUMNS and not g.attribute(layer.node, "transA", 0)
