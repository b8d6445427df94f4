"""What the original gives on every held-out sample: kept while it fits a bound, computed again beyond it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from graphopt.errors import DataError, WorkerError
from graphopt.proof.tolerance import leaves
from graphopt.runtime.values import Value, keep
from graphopt.runtime.worker import Session, Worker
from graphopt.samples.sampling import Sample, Samples
from graphopt.target import Target

Outputs = dict[str, Value]


@dataclass
class References:
    """The samples with the original's outputs, as often as they are asked for.

    Args:
        worker: runs the original.
        original: its file.
        samples: what to run on; the same on every iteration.
        target: where it runs.
        threads: ONNX Runtime's intra-op threads; 0 is its default.
        limit: bytes of outputs to keep; large ones are mapped from disk.
    """

    worker: Worker
    original: Path
    samples: Samples
    target: Target
    threads: int
    limit: int
    _kept: list[Outputs] = field(default_factory=list, init=False)
    _room: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._room = self.limit

    def __iter__(self) -> Iterator[tuple[Sample, Outputs]]:
        """Each sample with its outputs.

        Raises:
            DataError: the original does not run on a sample.
        """
        with contextlib.ExitStack() as stack:
            session = None
            for index, sample in enumerate(self.samples):
                if index < len(self._kept):
                    yield sample, self._kept[index]
                    continue
                session = session or stack.enter_context(
                    self.worker.opened(self.original, self.target, self.threads)
                )
                outputs = self._run(session, index, sample)
                self._keep(index, outputs)
                yield sample, outputs

    def _run(self, session: Session, index: int, sample: Sample) -> Outputs:
        try:
            return keep(self.worker.run(session, sample))
        except WorkerError as error:
            where = f"sample {index} of {self.samples.source}"
            raise DataError(f"the original does not run on held-out {where}: {error}") from error

    def _keep(self, index: int, outputs: Outputs) -> None:
        """Keep the outputs if they are the next ones; those after the first that do not fit are not."""
        self._room -= sum(leaf.nbytes for name, value in outputs.items() for _, leaf in leaves(name, value))
        if self._room >= 0 and index == len(self._kept):
            self._kept.append(outputs)
