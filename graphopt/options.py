"""How to optimize: the options of :func:`graphopt.optimize`, each of which the command line offers too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import registry
from graphopt.choices import CALIBRATION_MEMORY, PRECISIONS
from graphopt.conflicts import conflicts
from graphopt.errors import UsageError
from graphopt.journal import Rewrite
from graphopt.pipeline import Pipeline
from graphopt.progress import Progress, silent
from graphopt.proof.budget import DEFAULT as DEFAULT_DROP
from graphopt.proof.budget import Budget
from graphopt.pruning import Amount
from graphopt.report import decisions
from graphopt.storage.files import check_destination

if TYPE_CHECKING:
    from graphopt.samples.sampling import Source


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
        channels: the share of channels to remove, as ``0.5`` or ``50%``, or ``auto``: as much as ``max_drop``
            allows. With ``max_drop`` a share is the most; without, it is done and its cost told.
        rank: the same for the work of layers that are split into two thinner ones.
        sparsity: the same for weights that become zero; also ``2:4``, or a schedule such as
            ``PolynomialDecay(0, 0.8, 0, 100)``, whose final sparsity is meant.
        circulant: let layers become block-circulant, in blocks of so many numbers.
        cluster: let the weights of a layer share 2⁴ or 2⁸ values: 4 or 8.
        objective: what pruning is to gain where it can choose: ``latency``, ``macs`` or ``size``.
        select: how channels and weights are chosen: ``obs``, ``lasso``, ``energy``, ``l2`` or ``l1``.
        refit: whether what is left is fitted to make up for what was removed.
        precision: ``int8`` (calibrated on ``data``), ``int8-dynamic`` (needs no data), ``int8-weights`` or
            ``int4-weights`` (of weights alone), or ``fp16`` or ``bf16`` (for GPUs; calibrated on ``data``,
            else on drawn samples); None changes none.
        convert_io: let float inputs and outputs of the model be half, too, with ``fp16`` or ``bf16``.
        store: ``fp16`` or ``bf16``: how weights are stored that the model computes with as float32, after any
            ``precision``; None leaves them as they are.
        eval: what judges a lower precision: an .npz with an array per input and, for a metric, ``labels``, or
            the same as a dict of arrays; a folder of samples; ``module:function`` or a function, which gets a
            callable that runs the model and returns a number, higher is better. None judges by agreement and
            noise on held-out ``data``.
        max_drop: how much may be lost: ``0.5%`` of the original's metric (or of its decisions, if there is no
            metric), ``0.5`` as an amount of the metric, or ``15dB``: outputs keep this ratio of signal to
            noise; see :class:`graphopt.proof.budget.Budget`.
        block_size: how many numbers of a weight share a scale, with ``int8-weights`` and ``int4-weights``: 16
            to 256, a power of two; None takes 128 and 32.
        rounding: how weights are rounded there: ``nearest``, ``hqq`` (without data), ``gptq`` or ``awq``
            (fitted to ``data``), or ``auto``.
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
    channels: float | str | None = None
    rank: float | str | None = None
    sparsity: float | str | None = None
    circulant: int | None = None
    cluster: int | None = None
    objective: str = "latency"
    select: str = "obs"
    refit: bool = True
    precision: str | None = None
    convert_io: bool = False
    store: str | None = None
    eval: str | Mapping[str, Any] | Callable[..., Any] | None = None
    max_drop: str | float | None = None
    block_size: int | None = None
    rounding: str = "auto"
    ranges: str = "auto"
    calibration_memory: int = CALIBRATION_MEMORY
    save_calibration: Path | None = None
    calibration: Path | None = None
    calibration_limit: int | None = None
    progress: Progress = field(default=silent, repr=False)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Options by name.

        Raises:
            UsageError: there is none of such a name, or they do not go together.
        """
        names = [one.name for one in fields(cls)]
        for name in given:
            if name not in names:
                near = get_close_matches(name, names, 1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(names)}"
                raise UsageError(f"unknown option '{name}'{hint}")
        return cls(**given)

    def __post_init__(self) -> None:
        if self.replay is not None and self.passes is not None:
            raise UsageError("--replay repeats the passes of its report; leave --passes out")
        if self.verify_each and not self.verify:
            raise UsageError("--verify-each compares with the original; leave --no-verify out")
        for conflict in conflicts(self):
            raise UsageError(conflict)
        self.budget.require_metric(self.eval is not None)
        _ = self.amounts
        if self.save_calibration is not None:
            check_destination(self.save_calibration)

    @property
    def prunes(self) -> bool:
        """Whether anything is to be removed from the model."""
        return bool(self.amounts) or self.circulant is not None or self.cluster is not None

    @property
    def amounts(self) -> dict[str, Amount]:
        """How much is to be removed, by the name of the option.

        Raises:
            UsageError: it cannot be read.
        """
        given = {"channels": self.channels, "rank": self.rank, "sparsity": self.sparsity}
        return {name: Amount.parse(f"--{name}", one) for name, one in given.items() if one is not None}

    @property
    def calibrates(self) -> bool:
        """Whether samples are kept for something to be fitted to."""
        needs = PRECISIONS[self.precision] if self.precision is not None else None
        if self.prunes and self.data is not None:
            return True
        return needs is not None and needs.calibrates and (not needs.weights or self.data is not None)

    @property
    def budget(self) -> Budget:
        """How much accuracy a lower precision, or pruning that has a budget, may cost.

        Raises:
            UsageError: ``max_drop`` is no percentage, amount, or ratio of signal to noise.
        """
        return Budget.parse(str(self.max_drop) if self.max_drop is not None else DEFAULT_DROP)

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
