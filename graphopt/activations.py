"""Statistics of any tensors of a model over many samples, in memory that does not grow with their number.

The tensors that are asked for become outputs of a copy of the model, in groups whose activations and
accumulators fit into a budget; each group takes one pass over the samples. Activations stay in the worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import length_hint
from typing import Any, TypeVar

from graphopt.errors import DataError, UnsupportedModelError, UsageError, WorkerError
from graphopt.model import Model
from graphopt.progress import Progress, silent
from graphopt.runtime.accumulators import Accumulator, Kind
from graphopt.runtime.values import Tensor, Value, keep
from graphopt.runtime.watching import Collected
from graphopt.runtime.worker import Session, Worker
from graphopt.samples.inputs import check, inputs_of
from graphopt.tapping import Tapper, Untappable, elements, without_numbers
from graphopt.target import CPU, Level, Target

MEMORY = 512 << 20
_SIZED_SAMPLES = 4  # from which the sizes of activations are estimated
_ITEM_BYTES = 4  # bytes of an element; activations of 64 bits are rare and small
_LEVELS: tuple[Level, ...] = ("all", "extended", "basic", "disabled")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Request:
    """What to gather of which value, known by its name.

    Attributes:
        value: its name.
        kind: what to gather.
        partner: the name of the value that is gathered together with it, array by array; else empty.
    """

    value: str
    kind: Kind
    partner: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """The names of all that it watches."""
        return (self.value, self.partner) if self.partner else (self.value,)


@dataclass
class Statistics:
    """What was gathered.

    Attributes:
        found: results by request; each saw at least one element.
        absent: requests without a result, and why: the value does not exist or cannot be watched, no sample
            reached it, or it held NaN or infinity.
        samples: how many samples were run.
    """

    found: dict[Request, Accumulator] = field(default_factory=dict)
    absent: dict[Request, str] = field(default_factory=dict)
    samples: int = 0

    def get(self, value: str, kind: Kind) -> Any:
        """The result of a request; ``None`` if there is none, see ``absent``."""
        return self.found.get(Request(value, kind))


@dataclass(frozen=True)
class Collector:
    """How statistics are gathered.

    Attributes:
        worker: runs the models.
        target: where they run.
        threads: ONNX Runtime's intra-op threads; 0 is its default.
        memory: bytes for watched activations and accumulators at a time. A single value that needs more is
            watched alone. Weights that take more stay in their file, where kernels read them somewhat slower.
        progress: told how many runs of how many are done.
    """

    worker: Worker
    target: Target = CPU
    threads: int = 0
    memory: int = MEMORY
    progress: Progress = silent

    def collect(
        self, model: Model, requests: Iterable[Request], samples: Iterable[Mapping[str, Any]]
    ) -> Statistics:
        """Run samples and gather statistics, all of which are kept; see ``stream`` for large ones.

        Args:
            model: is not changed.
            requests: what to gather; the same request again changes nothing.
            samples: inputs by name, as arrays of numpy or the worker's values. They are iterated several
                times, each time from the start, and may differ in shape.

        Raises:
            DataError: a sample does not fit the model, or ONNX Runtime refuses it; there is no sample.
            UsageError: the samples can be iterated only once.
            UnsupportedModelError: ONNX Runtime does not load the model.
            WorkerError: the worker died, or took too long.
        """
        statistics = Statistics()
        for part in self.stream(model, requests, samples):
            statistics.found.update(part.found)
            statistics.absent.update(part.absent)
            statistics.samples = max(statistics.samples, part.samples)
        return statistics

    def stream(
        self, model: Model, requests: Iterable[Request], samples: Iterable[Mapping[str, Any]]
    ) -> Iterator[Statistics]:
        """As ``collect``, but the statistics of one group after another, so that not all are in memory."""
        wanted: dict[tuple[str, ...], list[Request]] = {}
        for request in dict.fromkeys(requests):
            wanted.setdefault(request.values, []).append(request)
        if wanted:
            yield from _Run(self, model, _Feeder(model, samples), wanted).groups()


class _Feeder:
    """The samples, checked against the model's inputs and numbered."""

    def __init__(self, model: Model, samples: Iterable[Mapping[str, Any]]) -> None:
        if iter(samples) is samples:
            raise UsageError("the samples are needed several times; give a list or Samples, no generator")
        self._specs = inputs_of(model.ir)
        self._samples = samples
        self.count = length_hint(samples) or None

    def __iter__(self) -> Iterator[tuple[str, dict[str, Value]]]:
        count = 0
        for sample in self._samples:
            where = f"sample {count}"
            yield where, check(self._specs, sample, where)
            count += 1
        if not count:
            raise DataError("there is no sample to calibrate with")
        self.count = count


@dataclass
class _Run:
    """One call of ``stream``; ``current`` names the sample that is being run."""

    how: Collector
    model: Model
    feeder: _Feeder
    wanted: Mapping[tuple[str, ...], Sequence[Request]]
    current: str = ""

    def groups(self) -> Iterator[Statistics]:
        sizes, absent = self._sizes()
        if absent:
            missed = {
                request: next(absent[name] for name in names if name in absent)
                for names, requests in self.wanted.items()
                for request in requests
                if not absent.keys().isdisjoint(names)
            }
            yield Statistics(absent=missed)
        groups = self._plan(sizes)
        for done, group in enumerate(groups):
            yield self._gather(group, done, len(groups))

    def _plan(self, sizes: Mapping[str, int]) -> list[list[tuple[str, ...]]]:
        """Groups of values that fit into memory, first fit; those without a size are left out."""
        groups: list[list[tuple[str, ...]]] = []
        room: list[int] = []
        for names, requests in self.wanted.items():
            if not sizes.keys() >= set(names):
                continue
            need = sum(sizes[name] for name in names) + sum(one.kind.start().nbytes for one in requests)
            index = next((i for i, free in enumerate(room) if need <= free), len(groups))
            if index == len(groups):
                groups.append([])
                room.append(self.how.memory)
            groups[index].append(names)
            room[index] -= need
        return groups

    def _gather(self, group: Sequence[tuple[str, ...]], done: int, groups: int) -> Statistics:
        """One pass over the samples for one group."""
        clone = self.model.clone()
        tapper = Tapper(clone.ir)
        taps = {name: tapper.tap(name) for name in dict.fromkeys(itertools.chain(*group))}
        tapper.finish()
        wanted = [
            ([taps[name] for name in names], [request.kind for request in self.wanted[names]])
            for names in group
        ]

        def watch(session: Session) -> Statistics:
            self.how.worker.watch(session, wanted)
            count = 0
            for sample in self._each(done, groups):
                self.how.worker.feed(session, sample)
                count += 1
            requests = (self.wanted[names] for names in group)
            return _statistics(zip(requests, self.how.worker.collected(session), strict=True), count)

        return self._with(clone, watch)

    def _sizes(self) -> tuple[dict[str, int], dict[str, str]]:
        """Bytes of each value in the largest of the first samples, and why others cannot be watched."""
        clone = self.model.clone()
        tapper = Tapper(clone.ir)
        wanted = dict.fromkeys(itertools.chain(*self.wanted))
        headers, absent = (
            {},
            {name: why for name, why in without_numbers(clone).items() if name in wanted},
        )
        for name in [name for name in wanted if name not in absent]:
            try:
                headers[name] = tapper.measure(name)
            except Untappable as error:
                absent[name] = str(error)
        tapper.finish()

        def measure(session: Session) -> dict[str, int]:
            largest = dict.fromkeys(headers, 0)
            seen = set()
            for sample in itertools.islice(self._each(0, 0), _SIZED_SAMPLES):
                shapes = _spell(sample)
                if shapes in seen:
                    continue
                seen.add(shapes)
                outputs = keep(self.how.worker.run(session, sample))
                for name, header in headers.items():
                    largest[name] = max(largest[name], elements(outputs[header]) * _ITEM_BYTES)
            return largest

        return self._with(clone, measure) if headers else {}, absent

    def _with(self, tapped: Model, use: Callable[[Session], Result]) -> Result:
        """Use a session of a tapped model, as optimized as it runs."""
        with self.how.worker.pool.written(tapped) as path:
            prepacks = tapped.weight_bytes <= self.how.memory
            for level in _LEVELS:
                self.current = ""
                target = replace(self.how.target, level=level, prepacks=prepacks)
                try:
                    with self.how.worker.opened(path, target, self.how.threads) as session:
                        return use(session)
                except WorkerError as error:
                    if error.reason != "failed":
                        raise
                    failure = error
        if self.current:
            raise DataError(f"{self.current}: ONNX Runtime refuses it: {failure}") from failure
        raise UnsupportedModelError(f"ONNX Runtime does not load the model: {failure}") from failure

    def _each(self, done: int, groups: int) -> Iterator[dict[str, Value]]:
        """The samples; notes which one is in use and tells how many are done, in all groups together."""
        for index, (where, sample) in enumerate(self.feeder):
            self.current = f"{where} ({_spell(sample)})"
            count = self.feeder.count
            if groups:
                self.how.progress("calibrating", done * (count or 0) + index, count and count * groups)
            yield sample


def _statistics(
    collected: Iterable[tuple[Sequence[Request], Sequence[Collected]]], samples: int
) -> Statistics:
    statistics = Statistics(samples=samples)
    for requests, results in collected:
        for request, one in zip(requests, results, strict=True):
            if one.accumulator is None:
                statistics.absent[request] = one.wrong
            elif not one.accumulator.count:
                statistics.absent[request] = "no sample reached it"
            else:
                statistics.found[request] = one.accumulator
    return statistics


def _spell(sample: Mapping[str, Value]) -> str:
    """Names and shapes of a sample's inputs."""
    shapes = {name: value.shape if isinstance(value, Tensor) else None for name, value in sample.items()}
    return ", ".join(
        name if shape is None else f"{name} {'x'.join(map(str, shape)) or 'scalar'}"
        for name, shape in shapes.items()
    )
