"""What is gathered for the layers of a student one after the other, since each is fitted before the next.

Layers that do not read from each other come together (:mod:`.waves`), and runs go on from where nothing
changes any longer (:mod:`graphopt.checkpoint`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from graphopt.activations import Collector
from graphopt.checkpoint import Checkpoint
from graphopt.joint import Joint, side_by_side
from graphopt.model import Model
from graphopt.progress import Progress, silent
from graphopt.runtime.heap import give_back
from graphopt.samples.sampling import Sample
from graphopt_passes.refit.recurrent import AnyLayer
from graphopt_passes.refit.waves import waves

Found = TypeVar("Found")
Gather = Callable[
    [Collector, Joint, Iterable[AnyLayer], Iterable[Mapping[str, Any]]], Iterator[tuple[AnyLayer, Found]]
]


@dataclass(frozen=True)
class Walk:
    """Through the layers of students of one model.

    Attributes:
        collector: bounds the memory.
        teacher: the model; it is not changed.
        samples: are run for each layer, or for some that do not read from each other.
        progress: told how many runs of how many are done.
    """

    collector: Collector
    teacher: Model
    samples: Sequence[Sample]
    progress: Progress = silent

    def through(
        self, student: Model, layers: Sequence[AnyLayer], gather: Gather[AnyLayer, Found]
    ) -> Iterator[tuple[AnyLayer, Found]]:
        """Layers of a student with what was gathered for each, those that others read first.

        Write each before the next is asked for: what is gathered behind it depends on it. What was gathered
        should be gone by then, too.

        Args:
            student: has outputs of the same names for all of these layers, and nothing else of it changes.
            layers: in the order of its graph.
            gather: as :func:`.moments`.

        Raises:
            DataError: a sample does not fit, or there is none.
        """
        steps = waves(student, layers)
        with Checkpoint(self.collector, self.samples) as checkpoint:
            for done, wave in enumerate(steps):
                self.progress("fitting layers", done, len(steps))
                give_back()  # what fitting the last ones took
                joint, left = side_by_side(self.teacher, student), list(itertools.chain(*steps[done:]))
                changing = [joint.students(layer.name) for layer in left]
                feeds = checkpoint.advance(joint.model, _taps(joint, wave), _taps(joint, left), changing)
                yield from gather(self.collector, joint, wave, feeds)
        give_back()


def _taps(joint: Joint, layers: Iterable[AnyLayer]) -> list[str]:
    """What is gathered of: what the student's layers read, and what the teacher's give."""
    return [name for layer in layers for name in (joint.students(layer.source), layer.name)]
