"""How to optimize: the options of :func:`graphopt.optimize`, each of which the command line offers too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import registry
from graphopt.errors import UsageError
from graphopt.journal import Rewrite
from graphopt.pipeline import Pipeline
from graphopt.progress import Progress, silent
from graphopt.proof.budget import DEFAULT as DEFAULT_DROP
from graphopt.proof.budget import Budget
from graphopt.report import decisions
from graphopt.storage.files import check_destination

if TYPE_CHECKING:
    from graphopt.samples.sampling import Source


@dataclass(frozen=True)
class Needs:
    """What a lower precision needs of samples.

    Attributes:
        calibrates: samples are kept for it to be fitted to.
        data: they must be the user's; else drawn ones would do.
        ranges: it chooses ranges of activations from statistics that can be saved.
        weights: only weights are rounded; drawn samples would not do to fit them to.
    """

    calibrates: bool
    data: bool
    ranges: bool = False
    weights: bool = False


PRECISIONS = {
    "int8": Needs(calibrates=True, data=True, ranges=True),
    "int8-dynamic": Needs(calibrates=False, data=False),
    "fp16": Needs(calibrates=True, data=False),
    "bf16": Needs(calibrates=True, data=False),
    "int8-weights": Needs(calibrates=True, data=False, weights=True),
    "int4-weights": Needs(calibrates=True, data=False, weights=True),
}
HALVES = ("fp16", "bf16")
ROUNDINGS = ("auto", "nearest", "hqq", "gptq")
BLOCK_SIZES = (16, 32, 64, 128, 256)
STORES = ("fp16", "bf16")
RANGES = ("auto", "minmax", "percentile", "kl", "mse")
CALIBRATION_MEMORY = 512_000_000


@dataclass(frozen=True)
class Options:
    """How to optimize.

    Attributes:
        passes: a pipeline, a list of passes and rules, or its spelling; ``None`` takes the default plan.
        target: ``cpu``, ``cuda`` or ``tensorrt``.
        data: the user's samples: a path or function, or arrays, see
            :meth:`graphopt.samples.sampling.Samples.from_user`; ``None`` draws synthetic ones.
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
        precision: ``int8`` (calibrated on ``data``), ``int8-dynamic`` (needs no data), ``int8-weights`` or
            ``int4-weights`` (of weights alone), or ``fp16`` or ``bf16`` (for GPUs; calibrated on ``data``,
            else on drawn samples); None changes none.
        convert_io: let float inputs and outputs of the model be half, too, with ``fp16`` or ``bf16``.
        store: ``fp16`` or ``bf16``: how weights are stored that the model computes with as float32, after any
            ``precision``; None leaves them as they are.
        eval: what judges a lower precision: an .npz with an array per input and, for a metric, ``labels``; a
            folder of samples; ``module:function`` or a function, which gets a callable that runs the model
            and returns a number, higher is better. None judges by agreement and noise on held-out ``data``.
        max_drop: how much may be lost: ``0.5%`` of the original's metric (or of its decisions, if there is no
            metric), or ``0.5`` as an amount of the metric; see :class:`graphopt.proof.budget.Budget`.
        block_size: how many numbers of a weight share a scale, with ``int8-weights`` and ``int4-weights``: 16
            to 256, a power of two; None takes 128 and 32.
        rounding: how weights are rounded there: ``nearest``, ``hqq`` (without data), ``gptq`` (fitted to
            ``data``), or ``auto``.
        ranges: how ranges of activations are chosen: ``auto``, ``minmax``, ``percentile``, ``kl`` or ``mse``.
        calibration_memory: bytes that the statistics of activations may take at a time.
        save_calibration: a file for these statistics (arrays go to an .npz beside it).
        calibration: such a file of an earlier run, in place of calibrating again.
        calibration_limit: how many samples of ``data`` to use; None takes all.
        progress: called with the stage, and when they are known with the steps done and in total.
    """

    passes: Any = None
    target: str = "cpu"
    data: Source | None = None
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
    precision: str | None = None
    convert_io: bool = False
    store: str | None = None
    eval: str | Callable[..., Any] | None = None
    max_drop: str | None = None
    block_size: int | None = None
    rounding: str = "auto"
    ranges: str = "auto"
    calibration_memory: int = CALIBRATION_MEMORY
    save_calibration: Path | None = None
    calibration: Path | None = None
    calibration_limit: int | None = None
    progress: Progress = field(default=silent, repr=False)

    def __post_init__(self) -> None:
        if self.replay is not None and self.passes is not None:
            raise UsageError("--replay repeats the passes of its report; leave --passes out")
        if self.verify_each and not self.verify:
            raise UsageError("--verify-each compares with the original; leave --no-verify out")
        for conflict in _precision_conflicts(self):
            raise UsageError(conflict)
        self.budget.require_metric(self.eval is not None)
        if self.save_calibration is not None:
            check_destination(self.save_calibration)

    @property
    def calibrates(self) -> bool:
        """Whether samples are kept for something to be fitted to."""
        needs = PRECISIONS[self.precision] if self.precision is not None else None
        return needs is not None and needs.calibrates and (not needs.weights or self.data is not None)

    @property
    def budget(self) -> Budget:
        """How much accuracy a lower precision may cost.

        Raises:
            UsageError: ``max_drop`` is neither a percentage nor an amount.
        """
        return Budget.parse(self.max_drop if self.max_drop is not None else DEFAULT_DROP)

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


def _precision_conflicts(options: Options) -> Iterator[str]:
    """What is wrong with the options of lower precision, if anything."""
    calibrating = {
        "--ranges": options.ranges != "auto",
        "--calibration-memory": options.calibration_memory != CALIBRATION_MEMORY,
        "--calibration-limit": options.calibration_limit is not None,
        "--save-calibration": options.save_calibration is not None,
        "--calibration": options.calibration is not None,
    }
    judging = {"--eval": options.eval is not None, "--max-drop": options.max_drop is not None}
    rounding = {"--block-size": options.block_size is not None, "--rounding": options.rounding != "auto"}
    if options.store is not None and options.store not in STORES:
        yield f"unknown --store '{options.store}'; choose one of {', '.join(STORES)}"
    if options.precision is None:
        if options.convert_io:
            yield f"--convert-io needs --precision {' or '.join(HALVES)}"
        needless = (calibrating if options.store is not None else judging | calibrating) | rounding
        yield from (f"{name} needs --precision" for name, given in needless.items() if given)
        yield from _missing_eval(options)
        return
    if options.precision not in PRECISIONS:
        yield f"unknown precision '{options.precision}'; choose one of {', '.join(PRECISIONS)}"
        return
    if options.ranges not in RANGES:
        yield f"unknown --ranges '{options.ranges}'; choose one of {', '.join(RANGES)}"
    if options.convert_io and options.precision not in HALVES:
        yield f"--convert-io needs --precision {' or '.join(HALVES)}"
    if PRECISIONS[options.precision].weights:
        yield from _rounding_conflicts(options)
    else:
        given = [name for name, is_given in rounding.items() if is_given]
        yield from (f"{name}: {options.precision} has no use for it; leave it out" for name in given)
    if not PRECISIONS[options.precision].calibrates:
        given = [name for name, is_given in calibrating.items() if is_given]
        yield from (f"{name}: {options.precision} calibrates nothing; leave it out" for name in given)
    else:
        yield from _calibration_conflicts(options)
    yield from _missing_eval(options)


def _rounding_conflicts(options: Options) -> Iterator[str]:
    if options.rounding not in ROUNDINGS:
        yield f"unknown --rounding '{options.rounding}'; choose one of {', '.join(ROUNDINGS)}"
    if options.block_size not in (None, *BLOCK_SIZES):
        yield f"--block-size {options.block_size} is none of {', '.join(map(str, BLOCK_SIZES))}"
    if options.rounding == "gptq" and options.data is None:
        yield "--rounding gptq fits weights to samples: give them with --data, or use hqq, which needs none"


def _missing_eval(options: Options) -> Iterator[str]:
    if isinstance(options.eval, str) and ":" not in options.eval and not Path(options.eval).exists():
        yield f"no such --eval: {options.eval} (an .npz file, a folder, or package.module:function)"


def _calibration_conflicts(options: Options) -> Iterator[str]:
    if options.precision is not None and not PRECISIONS[options.precision].ranges:
        ranging = {
            "--ranges": options.ranges != "auto",
            "--save-calibration": options.save_calibration is not None,
            "--calibration": options.calibration is not None,
        }
        given = [name for name, is_given in ranging.items() if is_given]
        yield from (f"{name}: {options.precision} chooses no ranges; leave it out" for name in given)
    if options.calibration is not None:
        if options.save_calibration is not None:
            yield "--save-calibration has nothing to save with --calibration; leave one of them out"
        if not options.calibration.is_file():
            yield f"no such calibration: {options.calibration}"
    if options.data is None and options.precision is not None and PRECISIONS[options.precision].data:
        yield (
            f"--precision {options.precision} calibrates on your samples: give them with --data ('synthetic'"
            " draws some, but says little about accuracy), or use --precision int8-dynamic, which needs none"
        )
    if options.calibration_memory <= 0:
        yield "--calibration-memory must be positive"
    if options.calibration_limit is not None and options.calibration_limit < 1:
        yield "--calibration-limit must be at least 1"


def _pipeline(passes: Any) -> Pipeline:
    if passes is None:
        return registry.plan()
    if isinstance(passes, Pipeline):
        return passes
    return registry.parse(passes) if isinstance(passes, str) else Pipeline(passes)
