"""The command line: ``graphopt optimize``, ``prune``, ``verify``, ``bench``, ``inspect``, ``passes``."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from graphopt.console import completion
from graphopt.console.exits import EXIT_CODES, explain
from graphopt.console.limits import to_bytes
from graphopt.console.options import (
    OUTPUT,
    CustomOps,
    Data,
    Debug,
    Input,
    Json,
    MemoryLimit,
    Seed,
    Shapes,
    TargetName,
    Threads,
    TimeLimit,
    flag,
)
from graphopt.console.rewriting import EXAMPLES, PRUNING_EXAMPLES, optimize, prune
from graphopt.errors import UsageError

app = typer.Typer(
    help="Optimize ONNX models for ONNX Runtime: verified against the original, never slower, explained.",
    epilog=f"Exit codes: {'; '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}.",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def _examples(lines: Sequence[str]) -> str:
    return "\n\n".join(f"Example: {line}" for line in lines)


app.command(epilog=_examples(EXAMPLES))(optimize)
app.command(epilog=_examples(PRUNING_EXAMPLES))(prune)


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
    layers: Annotated[bool, flag("--layers", panel=OUTPUT, help="Also list every node.")] = False,
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
