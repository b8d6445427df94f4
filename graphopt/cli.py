"""The command line: ``graphopt optimize``, ``verify``, ``bench``, ``inspect``, ``passes``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from graphopt.errors import GraphoptError

EXIT_CODES = """\
Exit codes: 0 done; 1 the system refused (disk full, permission); 2 usage (no such input, unknown pass, output
over input); 3 the model is invalid or unsupported; 4 parity cannot be had, or --strict was not met (nothing
written); 5 bad data; 130 interrupted."""

app = typer.Typer(
    help="Optimize ONNX models for ONNX Runtime: verified against the original, never slower, explained.",
    epilog=EXIT_CODES.replace("\n", " "),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Input = Annotated[Path, typer.Argument(metavar="IN.onnx", help="The model to read; it is never written to.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Samples: an .npz (one array per input, leading axis = samples), a folder of .npz or of ONNX"
        " test_data_set_*, or package.module:function yielding dicts. Default: synthetic samples.",
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", metavar="NAME=1x3x224x224", help="Shape of an input for synthetic samples; repeatable."
    ),
]
Threads = Annotated[
    int, typer.Option(min=0, help="ONNX Runtime's intra-op threads; 0 is its default, one per core.")
]
TargetName = Annotated[str, typer.Option("--target", help="Execution provider: cpu, cuda or tensorrt.")]
Seed = Annotated[int, typer.Option(help="Seed of the synthetic samples.")]
CustomOps = Annotated[
    list[Path] | None,
    typer.Option("--custom-ops", metavar="LIB.so", help="Library of custom operators; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
TimeLimit = Annotated[float, typer.Option(help="Seconds that one call into ONNX Runtime may take.")]


def _version(wanted: bool) -> None:
    if wanted:
        from graphopt import __version__

        typer.echo(f"graphopt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Optimize ONNX models for ONNX Runtime: verified against the original, never slower, explained."""


@app.command(epilog="Example: graphopt optimize model.onnx out.onnx --data calib.npz --threads 1")
def optimize(
    source: Input,
    output: Annotated[
        Path, typer.Argument(metavar="OUT.onnx", help="Where the result appears, all at once.")
    ],
    passes: Annotated[
        str | None,
        typer.Option(help='Passes instead of the default plan: "fold-constants{max-growth=0},fuse-conv-bn".'),
    ] = None,
    target: TargetName = "cpu",
    data: Data = None,
    shape: Shapes = None,
    seed: Seed = 0,
    threads: Threads = 0,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="OP|NODE", help="Leave these nodes alone; repeatable.")
    ] = None,
    freeze_initializers: Annotated[
        bool, typer.Option("--freeze-initializers", help="Make weights that are also graph inputs constant.")
    ] = False,
    external_data: Annotated[
        bool, typer.Option("--external-data", help="Store weights beside the model; done anyway above 2 GB.")
    ] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="Allow OUT to be IN.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with the original.")] = False,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Do not measure latency.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Write nothing, exit 4, unless the result is verified.")
    ] = False,
    custom_ops: CustomOps = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the full report as JSON.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Repeat the decisions of an earlier report.")
    ] = None,
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="Compare with the original after every pass (slow).")
    ] = False,
    bisect_limit: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Allow only the first N rewrites.")
    ] = None,
    print_after: Annotated[
        str | None, typer.Option(metavar="PASS|all", help="Print the graph as text after a pass.")
    ] = None,
    dump_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save model and text after every pass that changed it.")
    ] = None,
    time_passes: Annotated[bool, typer.Option("--time-passes", help="Show the time of each pass.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Show every rule's rewrites, refusals and their reasons.")
    ] = False,
    time_limit: TimeLimit = 600.0,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Show refusals and notes.")] = 0,
    debug: Debug = False,
) -> None:
    """Rewrite a model so that it runs faster, verify it against the original, and say what was done."""
    from graphopt import terminal
    from graphopt.compiler import optimize as run

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
            progress=progress,
        )
    if report is not None:
        result.report.save(report)
    if as_json:
        terminal.print_json(result.report.to_dict())
    elif not quiet:
        terminal.print_report(result.report, time_passes=time_passes, stats=stats, verbose=verbose)


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
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare the outputs of two models; exit code 4 when they differ beyond rounding."""
    from graphopt import terminal
    from graphopt.compare import verify as run

    with terminal.progress(enabled=not as_json) as progress:
        progress("verifying")
        found = run(a, b, target, data, shape or (), seed, threads, custom_ops or (), time_limit)
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
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure two models interleaved: latency, load time, peak memory, file size."""
    from graphopt import terminal
    from graphopt.compare import bench as run

    with terminal.progress(enabled=not as_json) as progress:
        progress("measuring")
        found = run(a, b, target, data, shape or (), seed, threads, custom_ops or (), time_limit)
    terminal.print_comparison(found, as_json)


@app.command(epilog="Example: graphopt inspect model.onnx --layers --shape input=1x3x224x224")
def inspect(
    source: Input,
    layers: Annotated[bool, typer.Option("--layers", help="Also list every node.")] = False,
    shape: Shapes = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a model is: interface, opset, metadata, precision, and its cost by operator and by layer."""
    from graphopt import terminal
    from graphopt.inspection import Inspection

    found = Inspection.of(source, shape or ())
    terminal.print_inspection(found, as_json, layers)


@app.command(epilog="Example: graphopt passes fold-constants")
def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="[PASS]", help="Show this pass and its options.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the passes, or show one pass's options."""
    from graphopt import registry, terminal

    if name is not None:
        terminal.print_pass(registry.find(name), as_json)
    else:
        terminal.print_passes([*registry.builtin().values(), *registry.plugins().values()], as_json)


def main() -> None:
    """Run the command line; every failure is one line on stderr and a documented exit code."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output went away: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except BaseException as error:
        if "--debug" in sys.argv and isinstance(error, Exception) and not isinstance(error, TyperException):
            raise
        code = _explain(error)
    sys.exit(code)


def _explain(error: BaseException) -> int:
    """Print the one line of a failure; returns the exit code."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, TyperException) and hasattr(error, "show"):
        error.show()
        return int(getattr(error, "exit_code", 2))
    text, code = _line(error)
    typer.echo(f"graphopt: error: {text}", err=True)
    return code


def _line(error: BaseException) -> tuple[str, int]:
    if isinstance(error, GraphoptError):
        return " ".join(str(error).split()), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing was written", 130
    if isinstance(error, MemoryError):
        return "out of memory; nothing was written", 1
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    kind = type(error).__name__
    return f"bug in graphopt ({kind}: {' '.join(str(error).split())[:300]}); --debug shows where", 1


if __name__ == "__main__":
    main()
