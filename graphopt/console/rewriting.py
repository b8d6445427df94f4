"""The commands that write a model: ``graphopt optimize`` and ``graphopt prune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.console.limits import to_bytes
from graphopt.console.options import (
    BisectLimit,
    BlockSize,
    Calibration,
    CalibrationLimit,
    CalibrationMemory,
    Channels,
    Circulant,
    Cluster,
    ConvertIo,
    CustomOps,
    Data,
    Debug,
    DumpDir,
    Evaluation,
    ExternalData,
    FreezeInitializers,
    InPlace,
    Input,
    Json,
    Keep,
    MaxDrop,
    MemoryLimit,
    NoMeasure,
    NoRefit,
    NoVerify,
    Objective,
    Output,
    Passes,
    Precision,
    PrintAfter,
    Quiet,
    Ranges,
    Rank,
    Replay,
    ReportFile,
    Rounding,
    SaveCalibration,
    Seed,
    Select,
    Shapes,
    Sparsity,
    Statistics,
    Store,
    Strict,
    TargetName,
    Threads,
    TimeLimit,
    TimePasses,
    Verbose,
    VerifyEach,
)
from graphopt.errors import UsageError

EXAMPLES = (
    "graphopt optimize model.onnx out.onnx --data calib.npz --threads 1",
    "graphopt optimize model.onnx out.onnx --precision int8 --data calib.npz --eval test.npz --max-drop 0.5%",
    "graphopt optimize model.onnx out.onnx --precision int8-dynamic",
    "graphopt optimize model.onnx out.onnx --precision fp16 --target cuda --data calib.npz",
    "graphopt optimize model.onnx out.onnx --precision int4-weights --data calib.npz",
    "graphopt optimize model.onnx out.onnx --store fp16",
    "graphopt optimize model.onnx out.onnx --channels 0.5 --data calib.npz --eval test.npz --max-drop 0.5%",
)


def optimize(
    source: Input,
    output: Output,
    passes: Passes = None,
    target: TargetName = "cpu",
    data: Data = None,
    shape: Shapes = None,
    seed: Seed = 0,
    threads: Threads = 0,
    keep: Keep = None,
    freeze_initializers: FreezeInitializers = False,
    external_data: ExternalData = False,
    channels: Channels = None,
    rank: Rank = None,
    sparsity: Sparsity = None,
    cluster: Cluster = None,
    objective: Objective = "latency",
    precision: Precision = None,
    store: Store = None,
    convert_io: ConvertIo = False,
    evaluation: Evaluation = None,
    max_drop: MaxDrop = None,
    block_size: BlockSize = None,
    rounding: Rounding = "auto",
    ranges: Ranges = "auto",
    calibration_limit: CalibrationLimit = None,
    calibration_memory: CalibrationMemory = 512.0,
    save_calibration: SaveCalibration = None,
    calibration: Calibration = None,
    in_place: InPlace = False,
    no_verify: NoVerify = False,
    no_measure: NoMeasure = False,
    strict: Strict = False,
    custom_ops: CustomOps = None,
    report: ReportFile = None,
    replay: Replay = None,
    verify_each: VerifyEach = False,
    bisect_limit: BisectLimit = None,
    print_after: PrintAfter = None,
    dump_dir: DumpDir = None,
    time_passes: TimePasses = False,
    stats: Statistics = False,
    time_limit: TimeLimit = 600.0,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Rewrite a model so that it runs faster, verify it against the original, and say what was done."""
    _run(
        source,
        output,
        _Shown(report, as_json, quiet, time_passes, stats, verbose),
        passes=passes,
        target=target,
        data=data,
        shapes=shape or (),
        seed=seed,
        threads=threads,
        keep=keep or (),
        freeze_initializers=freeze_initializers,
        external_data=external_data,
        in_place=in_place,
        precision=precision,
        convert_io=convert_io,
        store=store,
        eval=evaluation,
        max_drop=max_drop,
        block_size=block_size,
        rounding=rounding,
        ranges=ranges,
        calibration_limit=calibration_limit,
        calibration_memory=round(calibration_memory * 1e6),
        save_calibration=save_calibration,
        calibration=calibration,
        verify=not no_verify,
        measure=not no_measure,
        strict=strict,
        custom_ops=custom_ops or (),
        replay=replay,
        verify_each=verify_each,
        bisect_limit=bisect_limit,
        print_after=print_after,
        dump_dir=dump_dir,
        time_limit=time_limit,
        memory_limit=to_bytes(memory_limit),
        channels=channels,
        rank=rank,
        sparsity=sparsity,
        cluster=cluster,
        objective=objective,
    )


@dataclass(frozen=True)
class _Shown:
    """What is told of a result, and where."""

    report: Path | None
    as_json: bool
    quiet: bool
    time_passes: bool = False
    stats: bool = False
    verbose: int = 0


def _run(source: Path, output: Path, shown: _Shown, **options: Any) -> None:
    """Optimize with options of Python, and tell what came of it."""
    from graphopt.compiler import optimize as run
    from graphopt.console import terminal

    report, saved = shown.report, options.get("save_calibration")
    for what, path in (("report", report), ("calibration", saved)):
        if path is not None:
            _check_file(what, path, source, output)
    if report is not None and report.suffix.lower() in {".html", ".htm", ".pdf"}:
        raise UsageError(f"the report is JSON, not {report.suffix}: name it {report.with_suffix('.json')}")
    if report is not None and saved is not None and report.resolve() == saved.resolve():
        raise UsageError(f"the report would overwrite the calibration {report}; name another file")
    with terminal.progress(enabled=not (shown.quiet or shown.as_json)) as progress:
        result = run(source, output, **options, progress=progress)
    if report is not None:
        result.report.save(report)
    if shown.as_json:
        terminal.print_json(result.report.to_dict())
    elif not shown.quiet:
        terminal.print_report(
            result.report, time_passes=shown.time_passes, stats=shown.stats, verbose=shown.verbose
        )


def _check_file(what: str, path: Path, *models: Path) -> None:
    """Refuse a place for another file than the model's before any work is done."""
    from graphopt.storage.files import check_destination

    check_destination(path)
    if path.resolve() in {model.resolve() for model in models}:
        raise UsageError(f"the {what} would overwrite the model {path}; name another file")


PRUNING_EXAMPLES = (
    "graphopt prune model.onnx out.onnx --channels 0.5 --data calib.npz --eval test.npz --max-drop 0.5%",
    "graphopt prune model.onnx out.onnx --rank auto --data calib.npz --eval test.npz",
    "graphopt prune model.onnx out.onnx --sparsity 2:4 --target tensorrt --data calib.npz",
    "graphopt prune model.onnx out.onnx --channels 0.3 --precision int8 --data calib.npz --eval test.npz",
)


def prune(
    source: Input,
    output: Output,
    channels: Channels = None,
    rank: Rank = None,
    sparsity: Sparsity = None,
    circulant: Circulant = None,
    cluster: Cluster = None,
    objective: Objective = "latency",
    select: Select = "obs",
    no_refit: NoRefit = False,
    target: TargetName = "cpu",
    data: Data = None,
    shape: Shapes = None,
    seed: Seed = 0,
    threads: Threads = 0,
    keep: Keep = None,
    freeze_initializers: FreezeInitializers = False,
    external_data: ExternalData = False,
    precision: Precision = None,
    store: Store = None,
    evaluation: Evaluation = None,
    max_drop: MaxDrop = None,
    calibration_limit: CalibrationLimit = None,
    calibration_memory: CalibrationMemory = 512.0,
    in_place: InPlace = False,
    no_verify: NoVerify = False,
    no_measure: NoMeasure = False,
    strict: Strict = False,
    custom_ops: CustomOps = None,
    report: ReportFile = None,
    time_limit: TimeLimit = 600.0,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Optimize a model and remove what it can do without; `optimize` knows fewer of these options."""
    if all(one is None for one in (channels, rank, sparsity, circulant, cluster)):
        raise UsageError(
            "nothing to prune: say what with --channels, --rank, --sparsity, --circulant or --cluster"
        )
    _run(
        source,
        output,
        _Shown(report, as_json, quiet, verbose=verbose),
        target=target,
        data=data,
        shapes=shape or (),
        seed=seed,
        threads=threads,
        keep=keep or (),
        freeze_initializers=freeze_initializers,
        external_data=external_data,
        in_place=in_place,
        channels=channels,
        rank=rank,
        sparsity=sparsity,
        circulant=circulant,
        cluster=cluster,
        objective=objective,
        select=select,
        refit=not no_refit,
        precision=precision,
        store=store,
        eval=evaluation,
        max_drop=max_drop,
        calibration_limit=calibration_limit,
        calibration_memory=round(calibration_memory * 1e6),
        verify=not no_verify,
        measure=not no_measure,
        strict=strict,
        custom_ops=custom_ops or (),
        time_limit=time_limit,
        memory_limit=to_bytes(memory_limit),
    )
