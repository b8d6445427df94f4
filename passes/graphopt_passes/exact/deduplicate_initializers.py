"""deduplicate-initializers: keep one of several initializers with the same type, shape and bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import graph as g
from graphopt.pipeline import Pass, Run
from graphopt.storage.decode import QUANTIZATION
from graphopt.storage.weights import MappedTensor, SparseTensor, digest

if TYPE_CHECKING:
    from graphopt.model import Model

_SAMPLE = 64  # bytes compared first, so that few large weights are read whole
_Scope = tuple[ir.Graph, ...]
_Candidate = tuple[ir.Value, _Scope]


@dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Let equal initializers of a graph, or of a subgraph and a graph around it, be one.

    Those that a caller can override or that are graph outputs stay apart. Weights are read in pieces, and
    only when type, shape and a sample of the bytes agree.
    """

    name = "deduplicate-initializers"

    def apply(self, model: Model, run: Run) -> bool:
        """Compare within each scope; the outermost, first initializer is the one that stays."""
        revision = run.journal.revision
        for group in _groups(_candidates(model.ir.graph, ()), _sample):
            for same in _groups(group, digest):
                self._merge(same, run)
        return run.journal.revision > revision

    def _merge(self, same: list[_Candidate], run: Run) -> None:
        kept: list[ir.Value] = []
        for value, scope in same:
            original = next((other for other in kept if other.graph in scope), None)
            if original is None:
                kept.append(value)
            elif run.journal.admit(self.name, value.name or ""):
                value.replace_all_uses_with(original)
                del scope[-1].initializers[value.name or ""]


def _candidates(graph: ir.Graph, around: _Scope) -> Iterator[_Candidate]:
    """Mergeable initializers with the graphs that see them, outer graphs first."""
    scope = (*around, graph)
    for value in graph.initializers.values():
        tensor = g.constant(value)
        if (
            tensor is None
            or isinstance(tensor, SparseTensor)
            or value.is_graph_output()
            or QUANTIZATION in value.meta
        ):
            continue
        yield value, scope
    for node in graph:
        for subgraph in g.subgraphs(node):
            yield from _candidates(subgraph, scope)


def _groups(
    candidates: Iterable[_Candidate], key: Callable[[ir.TensorProtocol], object]
) -> Iterator[list[_Candidate]]:
    """Candidates that agree in type, dims and key, where there are several; else no key is asked for."""
    alike: dict[object, list[_Candidate]] = defaultdict(list)
    for candidate in candidates:
        tensor = _tensor(candidate)
        alike[tensor.dtype, tuple(tensor.shape.numpy())].append(candidate)
    for group in alike.values():
        if len(group) > 1:
            equal: dict[object, list[_Candidate]] = defaultdict(list)
            for candidate in group:
                equal[key(_tensor(candidate))].append(candidate)
            yield from (found for found in equal.values() if len(found) > 1)


def _tensor(candidate: _Candidate) -> ir.TensorProtocol:
    tensor = candidate[0].const_value
    assert tensor is not None
    return tensor


def _sample(tensor: ir.TensorProtocol) -> bytes:
    """A few bytes of the front, the middle and the end of a mapped weight; others have no cheap part."""
    if not isinstance(tensor, MappedTensor) or tensor.length < 4 * _SAMPLE:
        return b""
    starts = (0, tensor.length // 2, tensor.length - _SAMPLE)
    return b"".join(piece for at in starts for piece in tensor.file.read(tensor.offset + at, _SAMPLE))
