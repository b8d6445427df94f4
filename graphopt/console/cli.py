"""The command line: ``graphopt optimize``, ``verify``, ``bench``, ``inspect``, ``passes``."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from graphopt.console import completion
from graphopt.console.exits import EXIT_CODES, explain
from graphopt.console.limits import positive, to_bytes
from graphopt.errors import UsageError

app = typer.Typer(
    help="Optimize ONNX models for ONNX Runtime: verified against the original, never slower, explained.",
    epilog=f"Exit codes: {'; '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}.",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _flag(*names: str, panel: str | None = None, help: str) -> Any:
    """An option without a value; its type would only take room in the help."""
    return typer.Option(*names, help=help, metavar="", rich_help_panel=panel)


RESULT, EVIDENCE, OUTPUT, DEBUG = "Result", "Verification and measurement", "Output", "Debugging"
PRECISION = "Precision"

Input = Annotated[
    Path, typer.Argument(metavar="IN.onnx", show_default=False, help="The model to read; it stays as it is.")
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SRC",
        rich_help_panel=EVIDENCE,
        help="Samples: an .npz (one array per input, leading axis = samples), a folder of .npz or of ONNX"
        " test_data_set_*, or package.module:function yielding dicts. Default: synthetic.",
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1x3",
        rich_help_panel=EVIDENCE,
        help="Shape of an input, such as input=1x3x224x224; repeatable.",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        rich_help_panel=EVIDENCE,
        help="ONNX Runtime's threads; 0 is its default, one per core.",
    ),
]
TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="NAME",
        autocompletion=completion.targets,
        help="Execution provider: cpu, cuda or tensorrt.",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", min=0, rich_help_panel=EVIDENCE, help="Seed of the synthetic samples.")
]
CustomOps = Annotated[
    list[Path] | None,
    typer.Option("--custom-ops", metavar="LIB.so", help="Library of custom operators; repeatable."),
]
Json = Annotated[bool, _flag("--json", panel=OUTPUT, help="Print one JSON object instead of text.")]
Debug = Annotated[bool, _flag("--debug", panel=DEBUG, help="Show tracebacks.")]
TimeLimit = Annotated[
    float,
    typer.Option(
        metavar="S",
        callback=positive,
        rich_help_panel=EVIDENCE,
        help="Seconds that one call into ONNX Runtime may take.",
    ),
]
MemoryLimit = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        callback=positive,
        rich_help_panel=EVIDENCE,
        help="Data memory that ONNX Runtime may take; default: nine tenths of the machine's.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from graphopt import __version__

        typer.echo(f"graphopt {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, metavar="", help="Print the version."),
    ] = False,
) -> None:
    """Optimize ONNX models for ONNX Runtime: verified against the original, never slower, explained."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


_EXAMPLES = (
    "graphopt optimize model.onnx out.onnx --data calib.npz --threads 1",
    "graphopt optimize model.onnx out.onnx --precision int8 --data calib.npz --eval test.npz --max-drop 0.5%",
    "graphopt optimize model.onnx out.onnx --precision int8-dynamic",
    "graphopt optimize model.onnx out.onnx --precision fp16 --target cuda --data calib.npz",
    "graphopt optimize model.onnx out.onnx --precision int4-weights --data calib.npz",
    "graphopt optimize model.onnx out.onnx --store fp16",
)


@app.command(epilog="\n\n".join(f"Example: {example}" for example in _EXAMPLES))
def optimize(
    source: Input,
    output: Annotated[
        Path, typer.Argument(metavar="OUT.onnx", help="Where the result appears, all at once.")
    ],
    passes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            autocompletion=completion.pass_names,
            rich_help_panel=RESULT,
            help="Instead of the default plan, such as 'fold-constants{max-growth=0},fuse-conv-bn'.",
        ),
    ] = None,
    target: TargetName = "cpu",
    data: Data = None,
    shape: Shapes = None,
    seed: Seed = 0,
    threads: Threads = 0,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="OP|NODE", rich_help_panel=RESULT, help="Leave these nodes alone; repeatable."),
    ] = None,
    freeze_initializers: Annotated[
        bool,
        _flag(
            "--freeze-initializers", panel=RESULT, help="Make weights that are also graph inputs constant."
        ),
    ] = False,
    external_data: Annotated[
        bool,
        _flag("--external-data", panel=RESULT, help="Store weights beside the model, as is done above 2 GB."),
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.precisions,
            rich_help_panel=PRECISION,
            help="int8 (calibrated on --data), int8-dynamic (needs no data), int8-weights or int4-weights (of"
            " weights alone), or fp16 or bf16 (for GPUs). Default: as it is.",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.stores,
            rich_help_panel=PRECISION,
            help="Store weights as fp16 or bf16 and compute on float32: half the file, the same speed. Works"
            " alone and after --precision.",
        ),
    ] = None,
    convert_io: Annotated[
        bool,
        _flag("--convert-io/--keep-io", panel=PRECISION, help="With fp16 or bf16: inputs and outputs, too."),
    ] = False,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="SRC",
            rich_help_panel=PRECISION,
            help="What judges: an .npz (one array per input, and 'labels'), a folder of samples, or"
            " package.module:function, which gets a function that runs the model and returns a number, higher"
            " is better. Default: samples of --data that are held out.",
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="N[%]",
            rich_help_panel=PRECISION,
            help="What may be lost: 0.5% of the original's metric (without one: of its decisions), or 0.5 as"
            " an amount of the metric. Default: 0.5%.",
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=PRECISION,
            help="Numbers of a weight that share a scale in int8-weights and int4-weights: 16, 32, 64, 128 or"
            " 256. Default: 128 and 32.",
        ),
    ] = None,
    rounding: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.roundings,
            rich_help_panel=PRECISION,
            help="How these are rounded: nearest, hqq (without data), gptq (fitted to --data), or auto.",
        ),
    ] = "auto",
    ranges: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.ranges,
            rich_help_panel=PRECISION,
            help="Ranges of activations: auto (the best for each consumer), minmax, percentile, kl or mse.",
        ),
    ] = "auto",
    calibration_limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, rich_help_panel=PRECISION, help="Use only the first N samples of --data."
        ),
    ] = None,
    calibration_memory: Annotated[
        float,
        typer.Option(
            metavar="MB",
            callback=positive,
            rich_help_panel=PRECISION,
            help="Memory for the statistics of calibration; tensors are taken in groups that fit.",
        ),
    ] = 512.0,
    save_calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", rich_help_panel=PRECISION, help="Save the statistics for later."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", rich_help_panel=PRECISION, help="Use saved statistics of the same --data."
        ),
    ] = None,
    in_place: Annotated[bool, _flag("--in-place", panel=RESULT, help="Allow OUT to be IN.")] = False,
    no_verify: Annotated[
        bool, _flag("--no-verify", panel=EVIDENCE, help="Do not compare with the original.")
    ] = False,
    no_measure: Annotated[
        bool, _flag("--no-measure", panel=EVIDENCE, help="Do not measure latency.")
    ] = False,
    strict: Annotated[
        bool,
        _flag("--strict", panel=EVIDENCE, help="Write nothing, exit 4, unless the result is verified."),
    ] = False,
    custom_ops: CustomOps = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", rich_help_panel=OUTPUT, help="Write the full report as JSON."),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", rich_help_panel=RESULT, help="Repeat the decisions of an earlier report."
        ),
    ] = None,
    verify_each: Annotated[
        bool,
        _flag("--verify-each", panel=DEBUG, help="Compare with the original after every pass (slow)."),
    ] = False,
    bisect_limit: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", rich_help_panel=DEBUG, help="Allow only the first N rewrites."),
    ] = None,
    print_after: Annotated[
        str | None,
        typer.Option(
            metavar="PASS",
            autocompletion=completion.pass_names,
            rich_help_panel=DEBUG,
            help="Print the graph as text to stderr after a pass, or after 'all'.",
        ),
    ] = None,
    dump_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", rich_help_panel=DEBUG, help="Save the model after every pass that changed it."
        ),
    ] = None,
    time_passes: Annotated[
        bool, _flag("--time-passes", panel=OUTPUT, help="Show the time of each pass.")
    ] = False,
    stats: Annotated[
        bool, _flag("--stats", panel=OUTPUT, help="Show every rule's rewrites, refusals and their reasons.")
    ] = False,
    time_limit: TimeLimit = 600.0,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
    quiet: Annotated[bool, _flag("-q", "--quiet", panel=OUTPUT, help="Print nothing but errors.")] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            metavar="",
            show_default=False,
            rich_help_panel=OUTPUT,
            help="Show every refusal.",
        ),
    ] = 0,
    debug: Debug = False,
) -> None:
    """Rewrite a model so that it runs faster, verify it against the original, and say what was done."""
    from graphopt.compiler import optimize as run
    from graphopt.console import terminal

    for what, path in (("report", report), ("calibration", save_calibration)):
        if path is not None:
            _check_file(what, path, source, output)
    if report is not None and save_calibration is not None and report.resolve() == save_calibration.resolve():
        raise UsageError(f"the report would overwrite the calibration {report}; name another file")
    with terminal.progress(enabled=not (quiet or as_json)) as progress:
        result = run(
            source,
            output,
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
            progress=progress,
        )
    if report is not None:
        result.report.save(report)
    if as_json:
        terminal.print_json(result.report.to_dict())
    elif not quiet:
        terminal.print_report(result.report, time_passes=time_passes, stats=stats, verbose=verbose)


def _check_file(what: str, path: Path, *models: Path) -> None:
    """Refuse a place for another file than the model's before any work is done."""
    from graphopt.storage.files import check_destination

    check_destination(path)
    if path.resolve() in {model.resolve() for model in models}:
        raise UsageError(f"the {what} would overwrite the model {path}; name another file")


@app.command(epilog="Example: graphopt verify model.onnx out.onnx --data calib.npz")
def verify(
    a: Annotated[Path, typer.Argument(metavar="A.onnx", help="The reference.")],
    b: Annotated[Path, typer.Argument(metavar="B.onnx", help="The model to compare with it.")],
    target: TargetName = "cpu",
    data: Data = None,
    shape: Shapes = None,
    seed: Seed = 0,
    threads: Threads = 0,
    custom_ops: CustomOps = None,
    time_limit: TimeLimit = 600.0,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare the outputs of two models; exit code 4 when they differ beyond rounding."""
    from graphopt.console import terminal
    from graphopt.proof.compare import Conditions
    from graphopt.proof.compare import verify as run

    with terminal.progress(enabled=not as_json) as progress:
        memory = to_bytes(memory_limit)
        given = Conditions(target, data, shape or (), seed, threads, custom_ops or (), time_limit, memory)
        found = run(a, b, given, progress)
    terminal.print_verification(found, as_json)
    raise typer.Exit(0 if found.ok else 4)


@app.command(epilog="Example: graphopt bench model.onnx out.onnx --shape input=1x3x224x224 --threads 1")
def bench(
    a: Annotated[Path, typer.Argument(metavar="A.onnx", help="The original.")],
    b: Annotated[Path, typer.Argument(metavar="B.onnx", help="The model to compare with it.")],
    target: TargetName = "cpu",
    data: Data = None,
    shape: Shapes = None,
    seed: Seed = 0,
    threads: Threads = 0,
    custom_ops: CustomOps = None,
    time_limit: TimeLimit = 600.0,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure two models interleaved: latency, load time, peak memory, file size."""
    from graphopt.console import terminal
    from graphopt.proof.compare import Conditions
    from graphopt.proof.compare import bench as run

    with terminal.progress(enabled=not as_json) as progress:
        memory = to_bytes(memory_limit)
        given = Conditions(target, data, shape or (), seed, threads, custom_ops or (), time_limit, memory)
        found = run(a, b, given, progress)
    terminal.print_bench(found, as_json)


@app.command(epilog="Example: graphopt inspect model.onnx --layers --shape input=1x3x224x224")
def inspect(
    source: Input,
    layers: Annotated[bool, _flag("--layers", panel=OUTPUT, help="Also list every node.")] = False,
    shape: Shapes = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a model is: interface, opset, metadata, precision, and its cost by operator and by layer."""
    from graphopt.console import terminal
    from graphopt.inspection import Inspection
    from graphopt.samples.synthetic import parse_shapes

    workloads = parse_shapes(shape or ())
    if len(workloads) > 1:
        raise UsageError("inspect takes one --shape per input")
    found = Inspection.of(source, workloads[0] if workloads else {})
    terminal.print_inspection(found, as_json, layers)


@app.command(epilog="Example: graphopt passes fold-constants")
def passes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[PASS]", autocompletion=completion.pass_names, help="Show this pass and its options."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the passes, or show one pass's options."""
    from graphopt import registry
    from graphopt.console import terminal

    if name is not None:
        terminal.print_pass(registry.find(name), as_json)
    else:
        terminal.print_passes([*registry.builtin().values(), *registry.plugins().values()], as_json)


def main() -> None:
    """Run the command line; every failure is one line on stderr and a documented exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files and nodes need not be valid in the locale
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name="graphopt", standalone_mode=False)
        if code == 130:  # typer has caught KeyboardInterrupt
            raise KeyboardInterrupt
    except BaseException as error:
        code = explain(error)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
