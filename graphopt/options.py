"""How to optimize: the options of :func:`graphopt.optimize`, each of which the command line offers too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphopt import registry
from graphopt.console.progress import Progress, silent
from graphopt.errors import UsageError
from graphopt.journal import Rewrite
from graphopt.pipeline import Pipeline
from graphopt.report import decisions


@dataclass(frozen=True)
class Options:
    """How to optimize.

    Attributes:
        passes: a pipeline, a list of passes and rules, or its spelling; ``None`` takes the default plan.
        target: ``cpu``, ``cuda`` or ``tensorrt``.
        data: the user's samples, see :mod:`graphopt.samples.sampling`; ``None`` draws synthetic ones.
        shapes: ``name=1x3x224x224``, for synthetic samples; a name may come several times.
        seed: of the synthetic samples.
        threads: ONNX Runtime's intra-op threads; 0 is its default, one per core.
        keep: operator types and node names that no rewrite may touch.
        freeze_initializers: make initializers that callers could override constant.
        verify, measure: compare with the original; both happen unless switched off.
        strict: a result that is not verified is an error (nothing is written).
        custom_ops: shared libraries of custom operators.
        external_data: store the weights beside the model.
        in_place: allow the output to be the input.
        bisect_limit: allow only so many rewrites.
        verify_each: compare with the original after every pass.
        print_after: a pass, or ``all``: print the graph after it.
        dump_dir: save the model after every pass that changed it.
        replay: a report whose decisions are repeated; it also says which passes run.
        time_limit: seconds that one call into ONNX Runtime may take.
        memory_limit: bytes of data memory for ONNX Runtime; ``None`` is nine tenths of the machine's memory.
        progress: called with the stage, and when they are known with the steps done and in total.
    """

    passes: Any = None
    target: str = "cpu"
    data: str | None = None
    shapes: Sequence[str] = ()
    seed: int = 0
    threads: int = 0
    keep: Sequence[str] = ()
    freeze_initializers: bool = False
    verify: bool = True
    measure: bool = True
    strict: bool = False
    custom_ops: Sequence[Path] = ()
    external_data: bool = False
    in_place: bool = False
    bisect_limit: int | None = None
    verify_each: bool = False
    print_after: str | None = None
    dump_dir: Path | None = None
    replay: Path | None = None
    time_limit: float = 600.0
    memory_limit: int | None = None
    progress: Progress = field(default=silent, repr=False)

    def __post_init__(self) -> None:
        if self.replay is not None and self.passes is not None:
            raise UsageError("--replay repeats the passes of its report; leave --passes out")
        if self.verify_each and not self.verify:
            raise UsageError("--verify-each compares with the original; leave --no-verify out")

    def plan(self) -> tuple[Pipeline, frozenset[Rewrite] | None]:
        """The passes to run, and when replaying the only rewrites that they may make.

        Raises:
            UsageError: a pass is unknown, there is no file ``replay``, or ``print_after`` names no pass that
                runs.
            DataError: ``replay`` is a file, but no report.
        """
        passes, only = self.passes, None
        if self.replay is not None:
            passes, only = decisions(self.replay)
        pipeline = _pipeline(passes)
        if self.freeze_initializers:
            pipeline = with_freezing(pipeline)
        names = {"all", *(step.name for step in pipeline.passes)}
        if self.print_after is not None and self.print_after not in names:
            raise UsageError(f"--print-after: '{self.print_after}' is none of the passes that run")
        return pipeline, only


def with_freezing(pipeline: Pipeline) -> Pipeline:
    """The pipeline with freeze-initializers in front, unless it is there."""
    if any(step.name == "freeze-initializers" for step in pipeline.passes):
        return pipeline
    return Pipeline([registry.make("freeze-initializers"), *pipeline.passes], pipeline.observers)


def _pipeline(passes: Any) -> Pipeline:
    if passes is None:
        return registry.plan()
    if isinstance(passes, Pipeline):
        return passes
    return registry.parse(passes) if isinstance(passes, str) else Pipeline(passes)
