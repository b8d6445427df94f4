"""Runs that go on where earlier ones ended, of a model that changes from its front to its back.

Who fits layers in the order of the graph runs all samples for each of them, and what lies before the first
layer that may still change gives the same every time. So the values there that are read later on, the
*checkpoint*, are kept in a file, and are inputs of the next runs. All runs together then cost about as much
as two of the whole model, whatever the number of layers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import onnx_ir as ir

from graphopt import graph as g
from graphopt.activations import Collector
from graphopt.errors import SystemRefusedError, WorkerError
from graphopt.model import Model
from graphopt.runtime.values import NUMPY_TYPES, Computed, Tensor, keep
from graphopt.samples.sampling import Sample
from graphopt.samples.shelf import shelved
from graphopt.tapping import Tapper

_DISK = 4  # times the memory that activations may take


class _UnkeptError(Exception):
    """There is no room for all samples, or nothing that can be kept."""


@dataclass
class Checkpoint:
    """How far a model was run on some samples; a context, whose file is gone behind it.

    Attributes:
        how: runs it; four times its memory is what the file may take, and for a moment the file before it.
            Where that is not enough, runs start from the last place where it was.
        samples: the inputs of the model.
    """

    how: Collector
    samples: Sequence[Sample]
    _kept: dict[str, int] = field(default_factory=dict)  # types of elements by name
    _feeds: Sequence[Sample] = ()
    _folder: Path | None = None
    _failed: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()

    def advance(
        self, model: Model, taps: Collection[str], later: Collection[str], changing: Collection[str]
    ) -> Sequence[Sample]:
        """Run the samples as far as nothing changes any longer, and let the model begin there.

        Args:
            model: gives, by name, what it gave in earlier calls, but for what depends on what was changing
                then; it gets more inputs.
            taps: names of values that are to be watched next.
            later: of those that will be watched then and afterwards.
            changing: of values that may be others in later calls.

        Returns:
            What to feed, sample by sample, until the next call.
        """
        if set(later) - set(taps) and self.samples and not self._failed:
            ahead = model.clone()
            _begin(ahead, self._kept)
            cut = _Cut.of(ahead, set(taps), set(later), set(changing), self._kept)
            if cut.made:
                self._run_to(cut, ahead)
        _begin(model, self._kept)
        return self._feeds or self.samples

    def _run_to(self, cut: _Cut, ahead: Model) -> None:
        """Keep what a cut needs instead of what is kept, if that can be."""
        folder = Path(tempfile.mkdtemp(dir=self.how.worker.folder))
        try:
            kept = self._run(ahead, cut, folder)
        except (_UnkeptError, WorkerError, SystemRefusedError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            self._failed = not isinstance(error, _UnkeptError)
            return
        self._forget()
        self._folder = folder
        self._kept = {name: value.elem_type for name, value in kept[0].items() if isinstance(value, Tensor)}
        self._feeds = [{**sample, **more} for sample, more in zip(self.samples, kept, strict=True)]

    def _forget(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, model: Model, cut: _Cut, folder: Path) -> Sequence[Sample]:
        """What a cut keeps of each sample, in a file.

        Raises:
            _UnkeptError: there is no room for it, or none of it can be kept.
            SystemRefusedError: the disk is full.
            WorkerError: the model does not run.
        """
        ahead = model.clone()
        tapper = Tapper(ahead.ir)
        for name in cut.made:
            tapper.tap(name)
        tapper.finish()
        target = replace(self.how.target, prepacks=ahead.weight_bytes <= self.how.memory)
        worker = self.how.worker
        with (
            worker.pool.written(ahead) as path,
            worker.opened(path, target, self.how.threads) as session,
        ):
            plain = [one.name for one in session.info.outputs if one.type in NUMPY_TYPES]
            if plain == list(cut.made):
                runs = (
                    _computed(keep(worker.run(session, feeds))) | {name: feeds[name] for name in cut.stays}
                    for feeds in self._feeds or self.samples
                )
                return shelved(self._fitting(runs), folder)
        if not plain:
            raise _UnkeptError
        # Sequences and types that numpy lacks are made again each time.
        return self._run(model, replace(cut, made=plain), folder)

    def _fitting(self, kept: Iterable[Sample]) -> Iterator[Sample]:
        """The same, as long as there is room for them; for all of them, if they are like the first."""
        room = _DISK * self.how.memory
        for done, values in enumerate(kept):
            size = sum(value.nbytes for value in values.values() if isinstance(value, Tensor))
            if room < size * (1 if done else len(self.samples)):
                raise _UnkeptError
            room -= size
            yield values


def _computed(values: Sample) -> Sample:
    return {
        name: Computed(value.elem_type, value.shape, value.data)
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _begin(model: Model, kept: dict[str, int]) -> None:
    """Make inputs of these values, in place."""
    graph, names = model.ir.graph, g.Names(model.ir)
    made = {value.name: value for node in graph for value in node.outputs if value.name in kept}
    for name, elem_type in kept.items():
        old = made[name]
        old.name = names.fresh(name)
        new = ir.Value(name=name, type=ir.TensorType(ir.DataType(elem_type)))
        graph.inputs.append(new)
        old.replace_all_uses_with(new, replace_graph_outputs=True)


@dataclass(frozen=True)
class _Cut:
    """Between what is run and what is not.

    Attributes:
        made: names of values before it that nodes behind it read.
        stays: of inputs that these read.
    """

    made: Sequence[str]
    stays: Sequence[str]

    @classmethod
    def of(
        cls, model: Model, taps: set[str], later: set[str], changing: set[str], kept: Collection[str]
    ) -> _Cut:
        nodes = list(model.ir.graph)
        left = _needed(nodes, later)
        wanted = {value for node in left for value in g.reads(node)}
        before = {
            node
            for node in _needed(nodes, taps) & _fixed(nodes, changing)
            if not wanted.isdisjoint(node.outputs)  # else it is run when it is watched, that once
        }
        read = {value.name for node in left - before for value in g.reads(node)}
        runs = before & _fed(nodes)  # constants are not kept: who changes a layer may give it another
        made = [value.name or "" for node in nodes if node in runs for value in node.outputs]
        return cls([name for name in made if name in read], [name for name in kept if name in read])


def _fixed(nodes: Iterable[ir.Node], changing: set[str]) -> set[ir.Node]:
    """The nodes of a graph that follow from nothing that changes."""
    found: set[ir.Node] = set()
    for node in nodes:
        free = changing.isdisjoint(value.name for value in node.outputs)
        if free and all(value.producer() in found or value.producer() is None for value in g.reads(node)):
            found.add(node)
    return found


def _fed(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes of a graph that follow from its inputs."""
    found: set[ir.Node] = set()
    for node in nodes:
        if any(value.producer() in found or value.is_graph_input() for value in g.reads(node)):
            found.add(node)
    return found


def _needed(nodes: Sequence[ir.Node], names: set[str]) -> set[ir.Node]:
    """The nodes of a graph from which these values follow."""
    found: set[ir.Node] = set()
    wanted: set[ir.Value] = set()
    for node in reversed(nodes):
        if any(value in wanted or value.name in names for value in node.outputs):
            found.add(node)
            wanted.update(g.reads(node))
    return found
