"""What least squares needs to know of layers: what they read in the student, and should give as the teacher.

One session runs both models side by side (:mod:`graphopt.joint`); sums over pairs of rows come out of it
(:mod:`graphopt.runtime.pairs`), layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import length_hint
from typing import Any

from graphopt.activations import Collector, Request
from graphopt.joint import Joint
from graphopt.runtime.pairs import Paired, PairedRows, Pairs, RowPairs, Shares, Sums
from graphopt.runtime.steps import Steps
from graphopt_passes.quantize.consumers import moments_of
from graphopt_passes.refit.linear import Linear
from graphopt_passes.refit.recurrent import AnyLayer, Layer, Recurrent, recurrent_layers

HELD_EVERY = 4
"""Every so many-th sample judges what was fitted to the others."""

MOST_COLUMNS = 3072
"""Above this H takes more than 75 MB, ten times while a layer is fitted: rows are kept instead."""

MOST_ROWS = 2048
"""That are kept of what a layer reads."""

# All samples together; more rows of the same images change little.
_LEAST_ROWS = 1 << 15
_ROWS_PER_COLUMN = 16


def moments(
    collector: Collector,
    joint: Joint,
    layers: Iterable[AnyLayer],
    samples: Iterable[Mapping[str, Any]],
) -> Iterator[tuple[AnyLayer, Shares]]:
    """Sums for some layers of the student, as they come in; layers that nothing is known of do not come.

    Args:
        collector: bounds the memory, and runs the samples once for all layers that fit into it.
        joint: of a student, and the original, which gives values of the same names; it is not changed.
        layers: of the student.
        samples: are iterated several times.

    Raises:
        DataError: a sample does not fit, or there is none.
    """
    kinds = [(layer, _sums(layer, length_hint(samples) or 1)) for layer in layers]
    # By map, since no frame may hold what came last while the next is gathered.
    yield from map(_no_rows, _gathered(collector, joint, kinds, samples))


@dataclass(frozen=True)
class _Targets:
    """Sums of a recurrent layer, with what follows from them; see :class:`.Shares`."""

    fit: Sums
    held: Sums

    @classmethod
    def of(cls, layer: Recurrent, found: Shares) -> _Targets:
        return cls(layer.targets(found.fit), layer.targets(found.held))


@dataclass(frozen=True)
class RowsAbove:
    """As :func:`moments`, but rows of layers with more columns than this and one group."""

    columns: int = MOST_COLUMNS

    def __call__(
        self,
        collector: Collector,
        joint: Joint,
        layers: Iterable[Layer],
        samples: Iterable[Mapping[str, Any]],
    ) -> Iterator[tuple[Layer, Shares | RowPairs]]:
        """Gather."""
        kinds = [(layer, self._kind(layer, length_hint(samples) or 1)) for layer in layers]
        yield from _gathered(collector, joint, kinds, samples)

    def _kind(self, layer: Layer, samples: int) -> Paired | PairedRows | Steps:
        """What to gather for a layer from so many samples."""
        if isinstance(layer, Linear) and layer.columns > self.columns and layer.groups == 1:
            return _rows(layer, samples)
        return _sums(layer, samples)


def _gathered(
    collector: Collector,
    joint: Joint,
    kinds: Iterable[tuple[AnyLayer, Paired | PairedRows | Steps]],
    samples: Iterable[Mapping[str, Any]],
) -> Iterator[tuple[AnyLayer, Shares | RowPairs]]:
    """What a layer is to give is gathered, too; of a recurrent one it follows from the teacher's weights."""
    recurrent = {one.name: one for one in recurrent_layers(joint.teacher)}
    wanted = {Request(joint.students(one.source), kind, one.name): one for one, kind in kinds}
    for statistics in collector.stream(joint.model, wanted, samples):
        for request in list(statistics.found):  # none is kept once it is used
            layer = wanted[request]
            yield layer, _for_layer(statistics.found.pop(request), recurrent.get(layer.name))


def _for_layer(found: Any, teacher: Recurrent | None) -> Shares | RowPairs:
    """What was gathered for a layer, which may be recurrent in the teacher."""
    assert isinstance(found, Pairs | RowPairs)
    if teacher is None or isinstance(found, RowPairs):
        return found
    return _Targets.of(teacher, found)


def _no_rows(found: tuple[AnyLayer, Shares | RowPairs]) -> tuple[AnyLayer, Shares]:
    layer, pairs = found
    assert not isinstance(pairs, RowPairs)
    return layer, pairs


def _sums(layer: Layer, samples: int) -> Paired | Steps:
    """What to gather for a layer from so many samples."""
    return layer.steps(HELD_EVERY) if isinstance(layer, Recurrent) else _paired(layer, samples)


def _paired(layer: Linear, samples: int) -> Paired:
    """What to gather for a layer from so many samples."""
    kind = moments_of(layer.node)
    assert kind is not None
    rows = -(-max(_LEAST_ROWS, _ROWS_PER_COLUMN * layer.columns) // samples)
    return Paired(replace(kind, rows=rows), layer.channels, layer.axis, HELD_EVERY)


def _rows(layer: Linear, samples: int) -> PairedRows:
    """The same, of rows."""
    few = _paired(layer, samples)
    kind = replace(few.moments, rows=-(-MOST_ROWS // samples))
    return PairedRows(kind, few.channels, few.axis, few.held_every, MOST_ROWS)
