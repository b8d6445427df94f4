"""Input samples to verify and measure with: the user's own data, or drawn from the graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.values import Value

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.synthetic import Drawer

Sample = dict[str, Value]


@dataclass(frozen=True)
class Samples:
    """Samples that are made one at a time, anew on every iteration.

    Attributes:
        source: where they come from: a path, a function's name, or ``synthetic``.
        make: starts an iteration.
        details: more words for reports, such as the shapes.
        workload_sample: makes the sample to measure latency with; by default the first one.
    """

    source: str
    make: Callable[[], Iterator[Sample]]
    details: str = ""
    workload_sample: Callable[[], Sample] | None = None

    @classmethod
    def from_user(cls, source: str | Path, model: ir.Model, limit: int | None = None) -> Samples:
        """The user's samples, each checked against the inputs of the model as it is read.

        Args:
            source: an .npz file with one array per input, a folder of such files, ONNX ``test_data_set_*``
                folders, or ``package.module:function`` that yields dicts.
            model: the model that will be fed.
            limit: use the first so many.

        Raises:
            UsageError: there is no such file or function.
            DataError: while iterating, when a sample does not fit the model.
        """
        from graphopt.inputs import inputs_of
        from graphopt.userdata import reader

        read = reader(str(source), inputs_of(model))
        return cls(str(source), lambda: itertools.islice(read(), limit))

    @classmethod
    def synthetic(cls, drawer: Drawer, count: int = 8) -> Samples:
        """``count`` samples drawn from what the graph says about its inputs.

        Raises:
            DataError: while iterating, when an input has a type that cannot be drawn.
        """
        sizes = len(drawer.choices)
        details = f"seed {drawer.seed}, {sizes} shape{'s' if sizes > 1 else ''}"
        return cls("synthetic", lambda: map(drawer.draw, range(count)), details, drawer.workload)

    @property
    def is_synthetic(self) -> bool:
        """Whether the samples were drawn rather than given."""
        return self.source == "synthetic"

    def __iter__(self) -> Iterator[Sample]:
        return self.make()

    def workload(self) -> Sample | None:
        """The sample to measure latency with; None if there is no sample at all."""
        return self.workload_sample() if self.workload_sample else next(iter(self), None)

    def describe(self, count: int) -> str:
        """How reports name ``count`` of these samples, such as ``8 synthetic samples (seed 0, 3 shapes)``."""
        noun = "sample" if count == 1 else "samples"
        if self.is_synthetic:
            return f"{count} synthetic {noun} ({self.details})"
        return f"{count} {noun} of {self.source}"
