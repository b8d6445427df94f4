"""Two files side by side: do they agree, and which one is better? What ``verify`` and ``bench`` do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graphopt.errors import UnsupportedModelError, UsageError, WorkerError
from graphopt.inspection import Inspection
from graphopt.interface import Interface, Port, differences
from graphopt.model import Model
from graphopt.progress import Progress, silent
from graphopt.proof.measure import Comparison, compare
from graphopt.proof.verdict import Verdict
from graphopt.proof.verify import Verifier
from graphopt.runtime.probe import require
from graphopt.runtime.values import Tensor
from graphopt.runtime.worker import Worker
from graphopt.samples.sampling import Samples
from graphopt.samples.synthetic import parse_shapes
from graphopt.target import Target


@dataclass(frozen=True)
class Conditions:
    """What two models are compared on; the fields are the options of ``optimize``."""

    target: str = "cpu"
    data: str | None = None
    shapes: Sequence[str] = ()
    seed: int = 0
    threads: int = 0
    custom_ops: Sequence[Path] = ()
    time_limit: float = 600.0
    memory_limit: int | None = None

    def worker(self) -> Worker:
        """A new child process that runs models."""
        return Worker(self.memory_limit, self.time_limit, self.custom_ops)

    def samples(self, model: Model) -> Samples:
        """The samples for a model."""
        return Samples.of(model, self.data, self.shapes, self.seed)


@dataclass(frozen=True)
class Verification:
    """Whether one model can take the place of another.

    Attributes:
        ok: the inputs and outputs are the same, and so is what comes out, up to rounding.
        interface: how inputs and outputs differ in name, order, type or dims; then nothing was run.
        other: what else of the contract differs, such as metadata; it speaks against nothing.
        verdict: the comparison of what comes out.
    """

    ok: bool
    interface: tuple[str, ...]
    other: tuple[str, ...]
    verdict: Verdict | None


@dataclass(frozen=True)
class Side:
    """What one file is, without running it; ``file_bytes`` includes external data.

    ``macs`` are those of the last workload; None if they are not known.
    """

    path: str
    nodes: int
    file_bytes: int
    parameters: int
    macs: int | None

    @classmethod
    def of(cls, path: Path, dims: Mapping[str, tuple[int, ...]]) -> Side:
        """The facts of a file when its inputs have these dims."""
        found = Inspection.of(path, dims)
        size = found.file_bytes + sum(found.external_files.values())
        macs = None if found.unknown_macs else found.macs
        return cls(str(path), found.nodes, size, found.parameters, macs)


@dataclass(frozen=True)
class Bench:
    """Two models side by side, measured at every workload."""

    before: Side
    after: Side
    comparisons: tuple[Comparison, ...]


def verify(a: Path, b: Path, conditions: Conditions, progress: Progress = silent) -> Verification:
    """Compare what model ``b`` gives with what model ``a`` gives.

    Raises:
        GraphoptError: a file cannot be loaded, the samples do not fit ``a``, ONNX Runtime is missing.
    """
    target = Target.named(conditions.target)
    with conditions.worker() as worker:
        progress("loading")
        original = Model.load(a)
        before, after = Interface.of(original), Interface.of(Model.load(b))
        breaking = differences(_ports_of(before), _ports_of(after), before.overridable)
        all_of_them = differences(before, after, before.overridable)
        other = tuple(line for line in all_of_them if line not in breaking)
        if breaking:
            return Verification(False, tuple(breaking), other, None)
        progress("verifying")
        require(worker, target)
        verifier = Verifier(
            worker,
            a,
            conditions.samples(original),
            target,
            conditions.threads,
            lambda done, total: progress("verifying", done, total),
        )
        verdict = verifier.check(b)
    return Verification(verdict.status == "verified", (), other, verdict)


def bench(a: Path, b: Path, conditions: Conditions, progress: Progress = silent) -> Bench:
    """Measure two models in turns, at each workload that ``--shape`` gives.

    Raises:
        GraphoptError: a file cannot be loaded or run, the samples do not fit ``a``, ONNX Runtime is missing.
    """
    target = Target.named(conditions.target)
    workloads = [_spelled(shapes) for shapes in parse_shapes(conditions.shapes)] or [[]]
    comparisons = []
    with conditions.worker() as worker:
        progress("loading")
        require(worker, target)
        original, other = Model.load(a), Model.load(b)
        for index, shapes in enumerate(workloads):
            progress("measuring", index, len(workloads))
            samples = replace(conditions, shapes=shapes).samples(original)
            try:
                sample = Verifier(worker, a, samples, target, conditions.threads).workload()
                comparisons.append(
                    compare(
                        a, b, sample, worker=worker, target=target, threads=conditions.threads, memory=True
                    )
                )
            except WorkerError as error:
                if wrong := _inputs_differ(original, other):
                    raise UsageError(f"{b} does not take what {a} takes: {'; '.join(wrong)}") from error
                raise UnsupportedModelError(f"cannot measure {a} against {b}: {error}") from error
        dims = {name: value.shape for name, value in sample.items() if isinstance(value, Tensor)}
        before, after = (Side.of(path, dims) for path in (a, b))
    return Bench(before, after, tuple(comparisons))


def _spelled(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    return [f"{name}={'x'.join(map(str, dims))}" for name, dims in shapes.items()]


def _inputs_differ(a: Model, b: Model) -> list[str]:
    """How the inputs of one model differ from another's; dims that differ need not matter to a sample."""
    before, after = (replace(_ports_of(Interface.of(model)), outputs=()) for model in (a, b))
    return differences(before, after, before.overridable)


def _ports_of(interface: Interface) -> Interface:
    """Only what a caller meets: names, order, types and dims of inputs and outputs, which have defaults."""

    def bare(ports: Sequence[Port]) -> tuple[Port, ...]:
        return tuple(replace(port, doc_string="", metadata_props={}) for port in ports)

    return Interface(
        inputs=bare(interface.inputs),
        outputs=bare(interface.outputs),
        overridable=interface.overridable,
        properties={},
        metadata_props={},
        graph_metadata_props={},
        opset_imports={},
        ir_version=0,
        functions=frozenset(),
    )
