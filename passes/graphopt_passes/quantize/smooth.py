"""SmoothQuant: a normalization hands the size of its channels to the layers that read it.

    (x̂·γ + β)·W = (x̂·(γ/s) + β/s)·(s·W)

with one sⱼ per channel, sⱼ = max|Xⱼ|^α / max|Wⱼ|^(1−α) (Xiao et al. 2023, eq. 4), so that the size of a few
channels of large activations, which one scale for the tensor cannot serve, moves into the weights, which
have a scale per column. All layers that read the value (Q, K and V) share s; max|Wⱼ| is over all of them. It
costs nothing at run time, and the float model computes the same.

How far to go, α, is chosen by the error that is to be expected at the layers' outputs, with weights as they
will be rounded and activations rounded on a step Δ, of error Δ²/12:

    Σₙ Σₖ E(x̂ₖ²)·Δwₖₙ² + Δ²/12·ŵₖₙ²     x̂ = x/s, ŵ = s·w
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.rewrite import RefusedError
from graphopt_passes.quantize.layers import Layer, own_constant, replace_constant
from graphopt_passes.quantize.scheme import Array
from graphopt_passes.quantize.weights import rounded

Doubles = NDArray[np.float64]

NAME = "smooth-activations"
ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
_WORTH = 0.9  # part of the error that must be left at most
_LEVELS = 255  # steps of an activation between −max|x| and max|x|


@dataclass(frozen=True)
class Seen:
    """What calibration saw of a value, channel by channel along its last axis.

    Attributes:
        largest: max |x|, [channels].
        energy: mean of x², [channels].
    """

    largest: Array
    energy: Array


@dataclass(frozen=True)
class Norm:
    """A value with its factor and shift per channel, and the layers that read it.

    Attributes:
        value: what the layers read.
        affine: node and input of each constant that the channels are made with.
        readers: all that reads the value.
    """

    value: ir.Value
    affine: tuple[tuple[ir.Node, int], ...]
    readers: tuple[Layer, ...]


def smooth(
    model: Model, run: Run, seen: Mapping[str, Seen], alphas: Sequence[float] = ALPHAS
) -> dict[str, Doubles]:
    """Smooth every normalization that was seen, where that lowers the expected error by a tenth.

    The model is changed in place. What was seen of a smoothed value is no longer true: this is done once.

    Returns:
        The name of each value that changed → what its channels were divided by, float64 [channels].
    """
    done: dict[str, Doubles] = {}
    for norm in _norms(model, run, seen):
        name = norm.value.name or ""
        factor = best_factor(seen[name], [_columns(layer) for layer in norm.readers], alphas)
        if factor is None:
            run.journal.refuse(NAME, f"'{name}'", "the expected error is not lower")
        elif run.journal.admit(NAME, name):
            _rewrite(model, run, norm, factor)
            done[name] = factor
    return done


def best_factor(seen: Seen, weights: Sequence[Array], alphas: Sequence[float] = ALPHAS) -> Doubles | None:
    """The s of the α with the least expected error, or ``None`` if none is a tenth below no smoothing at all.

    Args:
        seen: of the value that is read, [K].
        weights: of all that read it, each as rows [N, K].
        alphas: to try, from 0 (all is left in the activations) to 1 (all moves into the weights).
    """
    sizes = np.max([np.abs(w).max(axis=0, initial=0.0) for w in weights], axis=0).astype(np.float64)
    found = [_factor(np.asarray(seen.largest, np.float64), sizes, alpha) for alpha in alphas]
    errors = [expected_error(seen, weights, factor) for factor in found]
    best = int(np.argmin(errors))
    worth = errors[best] < _WORTH * expected_error(seen, weights, np.ones(sizes.size))
    return found[best] if worth else None


def expected_error(seen: Seen, weights: Sequence[Array], factor: Doubles) -> float:
    """The expected squared error of all outputs of one row of X once x/s and s·W are int8."""
    step = 2 * float((seen.largest / factor).max(initial=0.0)) / _LEVELS
    energy = np.asarray(seen.energy, np.float64) / factor**2
    total = 0.0
    for w in weights:
        scaled = (w * factor).astype(np.float32)
        wrong = rounded(scaled, 0).real() - scaled
        total += float(np.square(wrong).sum(axis=0, dtype=np.float64) @ energy)
        total += step**2 / 12 * float(np.square(scaled).sum(dtype=np.float64))
    return total


def _factor(largest: Doubles, sizes: Doubles, alpha: float) -> Doubles:
    """max|X|^α / max|W|^(1−α); 1 for channels that are always 0 or have no weights."""
    live = (largest > 0) & (sizes > 0)
    result = np.ones_like(sizes)
    result[live] = largest[live] ** alpha / sizes[live] ** (1 - alpha)
    return result


def _columns(layer: Layer) -> Array:
    """The weight as rows [channels, inputs], a view."""
    return layer.matrices(layer.weight())[0, :, :, 0]


def _rewrite(model: Model, run: Run, norm: Norm, factor: Doubles) -> None:
    for node, index in norm.affine:
        old = g.array(node.inputs[index])
        assert old is not None
        replace_constant(model, run, node, index, (old / factor).astype(old.dtype))
    for layer in norm.readers:
        layer.scale(model, run, np.ones(layer.channels), factor)


def _norms(model: Model, run: Run, seen: Mapping[str, Seen]) -> Iterator[Norm]:
    """All values that can be smoothed, in the order of the graph; the journal gets the other reasons."""
    for node in list(g.nodes(model.ir)):
        if not g.is_op(node, "LayerNormalization", "Mul", "Add") or g.output_name(node) not in seen:
            continue
        value = node.outputs[0]
        try:
            size = np.size(seen[g.output_name(node)].largest)
            yield Norm(value, tuple(_affine(run, node, size)), tuple(_readers(run, value, size)))
        except (RefusedError, KeyError) as refused:
            run.journal.refuse(NAME, f"'{value.name}'", str(refused.args[0]))


def _affine(run: Run, node: ir.Node, size: int) -> Iterator[tuple[ir.Node, int]]:
    """The constants that make the channels: of LayerNormalization, or of Mul, maybe with Add behind."""
    _require(not run.keeps(node), f"{g.label(node)} is to be kept (--keep)")
    if node.op_type == "LayerNormalization":
        indices = [index for index, value in enumerate(node.inputs) if index > 0 and value is not None]
        return iter([_per_channel(node, index, size) for index in indices])
    index = 1 if g.constant(node.inputs[1]) is not None else 0
    found = [_per_channel(node, index, size)]
    if node.op_type == "Mul":
        return iter(found)
    inner = node.inputs[1 - index]
    product = inner.producer() if inner is not None else None
    _require(inner is not None and g.is_op(product, "Mul"), f"{g.label(node)} adds to no product")
    assert inner is not None and product is not None
    alone = len(inner.uses()) == 1 and not inner.is_graph_output() and product.graph is node.graph
    _require(alone, f"'{inner.name}' is used elsewhere, too")
    return iter(found + list(_affine(run, product, size)))


def _per_channel(node: ir.Node, index: int, size: int) -> tuple[ir.Node, int]:
    shape = own_constant(node, index).shape.numpy()
    _require(shape == (size,), f"input {index} of {g.label(node)} is not one number per channel")
    return node, index


def _readers(run: Run, value: ir.Value, size: int) -> Iterator[Layer]:
    _require(not value.is_graph_output(), f"'{value.name}' is a graph output")
    _require(bool(value.uses()), f"'{value.name}' is not used")
    for use in value.uses():
        node = use.node
        _require(g.is_op(node, "MatMul", "Gemm") and use.idx == 0, f"{g.label(node)} reads it, too")
        _require(not run.keeps(node), f"{g.label(node)} is to be kept (--keep)")
        layer = Layer.of(node)
        _require(layer.inputs == size, f"{g.label(node)} does not read {size} channels")
        yield layer


def _require(condition: object, why_not: str) -> None:
    if not condition:
        raise RefusedError(why_not)
