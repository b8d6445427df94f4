"""Several samples as one, where a model's batch is dynamic."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from graphopt.runtime.values import Tensor
from graphopt.samples.inputs import InputSpec, inputs_of
from graphopt.samples.sampling import Sample

# Of the inputs of one batch; activations are many times larger.
_MOST_ELEMENTS = 1 << 16


def stacked(model: ir.Model, samples: Iterable[Sample], count: int) -> Sample | None:
    """``count`` samples joined along their first axis.

    ``None`` if that axis is not dynamic in every input, if it is not 1 in the samples, or if their other dims
    differ. Fewer samples are repeated.
    """
    specs = inputs_of(model)
    if not specs or not all(map(_has_batch, specs)):
        return None
    found = list(itertools.islice(samples, count))
    chosen = list(itertools.islice(itertools.cycle(found), count))
    try:
        return {spec.name: _joined([sample[spec.name] for sample in chosen]) for spec in specs}
    except (KeyError, ValueError):
        return None


def batched(model: ir.Model, samples: Iterable[Sample], count: int) -> Iterator[Sample]:
    """The samples, ``count`` at a time as one where :func:`stacked` can; fewer where they are large.

    The last batch may be smaller; samples that do not fit each other stay as they are.
    """
    found = iter(samples)
    while first := list(itertools.islice(found, 1)):
        size = min(max(_MOST_ELEMENTS // max(_elements(first[0]), 1), 1), count)
        part = first + list(itertools.islice(found, size - 1))
        whole = stacked(model, part, len(part)) if len(part) > 1 else None
        yield from part if whole is None else [whole]


def _elements(sample: Sample) -> int:
    return sum(value.size for value in sample.values() if isinstance(value, Tensor))


def _has_batch(spec: InputSpec) -> bool:
    return spec.kind == "tensor" and bool(spec.shape) and not isinstance((spec.shape or (0,))[0], int)


def _joined(values: list[object]) -> Tensor:
    arrays = [value.numpy() for value in values if isinstance(value, Tensor)]
    if len(arrays) < len(values) or any(array.shape[:1] != (1,) for array in arrays):
        raise ValueError("no batch of one")
    return Tensor.of(np.concatenate(arrays))
