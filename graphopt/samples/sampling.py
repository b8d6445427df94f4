"""Input samples to verify and measure with: the user's own data, or drawn from the graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import UsageError
from graphopt.runtime.values import Value

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.model import Model
    from graphopt.samples.synthetic import Drawer

Sample = dict[str, Value]
Source = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]
USER_LIMIT = 100
# What --data says to draw samples after all.
SYNTHETIC = "synthetic"


def given(data: Source | None) -> Source | None:
    """The user's data; None if samples are to be drawn."""
    return None if isinstance(data, str) and data == SYNTHETIC else data


@dataclass
class Samples:
    """Samples that are made one at a time, anew on every iteration.

    Attributes:
        source: where they come from: a path, a function's name, or ``synthetic``.
        make: starts an iteration.
        drawer: what draws them, if they are synthetic.
        note: what of the source was left out; empty if nothing was.
        count: how many there are, as far as that is known.
    """

    source: str
    make: Callable[[], Iterator[Sample]]
    drawer: Drawer | None = None
    note: str = ""
    count: int | None = None

    @classmethod
    def of(
        cls,
        model: Model | ir.Model,
        data: Source | None = None,
        shapes: Sequence[str] = (),
        seed: int = 0,
        override: bool = True,
    ) -> Samples:
        """The user's samples if there is data, else synthetic ones.

        Args:
            model: what will be fed.
            data: see :meth:`from_user`; ``synthetic`` is the same as None.
            shapes: ``input=1x3x224x224``, for synthetic samples; an input may come several times.
            seed: of the synthetic samples.
            override: synthetic samples may feed other values for overridable initializers; must be False
                when these are to be frozen.

        Raises:
            UsageError: there is no such data, a shape does not fit the model, or both are given.
        """
        import onnx_ir as ir

        graph = model if isinstance(model, ir.Model) else model.ir
        data = given(data)
        if data is not None and shapes:
            raise UsageError("the samples of --data have shapes of their own; leave --shape out")
        if data is not None:
            return cls.from_user(data, graph)
        from graphopt.samples.synthetic import Drawer, parse_shapes

        return cls.synthetic(Drawer(graph, parse_shapes(shapes), seed, override))

    @classmethod
    def from_user(cls, source: Source, model: ir.Model, limit: int | None = USER_LIMIT) -> Samples:
        """The user's first ``limit`` samples, each checked against the model's inputs as it is read.

        Args:
            source: an .npz file with one array per input, a folder of such files, ONNX ``test_data_set_*``
                folders, or ``package.module:function`` that yields dicts; in Python also a dict of arrays as
                in an .npz file, or a list of dicts, one for each sample.
            model: what will be fed.
            limit: how many samples to use; None takes all.

        Raises:
            UsageError: there is no such file or function, or ``source`` is of another type.
            DataError: while iterating, when a sample does not fit the model.
        """
        from graphopt.samples import memory
        from graphopt.samples.inputs import inputs_of
        from graphopt.samples.userdata import ignored, reader

        specs = inputs_of(model)
        if not isinstance(source, str | Path):
            held = memory.reader(source, specs)
            return cls(memory.NAME, lambda: itertools.islice(held(), limit))
        read = reader(str(source), specs)
        return cls(str(source), lambda: itertools.islice(read(), limit), note=ignored(str(source), specs))

    @classmethod
    def synthetic(cls, drawer: Drawer, count: int = 8) -> Samples:
        """``count`` samples drawn from what the graph says about its inputs.

        Raises:
            DataError: while iterating, when an input has a type that cannot be drawn.
        """
        return cls(SYNTHETIC, lambda: map(drawer.draw, range(count)), drawer, count=count)

    @property
    def is_synthetic(self) -> bool:
        """Whether the samples were drawn rather than given."""
        return self.drawer is not None

    def __iter__(self) -> Iterator[Sample]:
        return self.make()

    def __length_hint__(self) -> int:
        return NotImplemented if self.count is None else self.count

    def fit(self, runs: Callable[[Sample], bool]) -> None:
        """Let synthetic samples take sizes on which the model runs; call it before they are used."""
        if self.drawer is not None:
            self.drawer.runs = runs

    def workload(self) -> Sample | None:
        """The sample to measure latency with: the first one, or a synthetic one of a size that people run."""
        return self.drawer.workload() if self.drawer is not None else next(iter(self), None)

    def describe(self, count: int) -> str:
        """How reports name ``count`` of these samples, such as ``8 synthetic samples (seed 0, 3 shapes)``."""
        noun = "sample" if count == 1 else "samples"
        if self.drawer is None:
            return f"{count} {noun} of {self.source}{f' ({self.note})' if self.note else ''}"
        shapes = len(self.drawer.choices)
        return (
            f"{count} synthetic {noun} (seed {self.drawer.seed}, {shapes} shape{'s' if shapes > 1 else ''})"
        )
