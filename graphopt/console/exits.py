"""How the command line ends: its exit codes, and the one line that explains a failure."""

from __future__ import annotations

import sys

from typer.exceptions import TyperException

from graphopt.errors import GraphoptError

EXIT_CODES = {
    0: "done",
    1: "the system refused (disk full, permission, no ONNX Runtime)",
    2: "usage (no such input, unknown pass, output over input)",
    3: "the model is invalid or unsupported",
    4: "parity cannot be had, or --strict was not met (nothing is written)",
    5: "the data does not fit the model",
    130: "interrupted",
}


def explain(error: BaseException) -> int:
    """Print the one line of a failure to stderr; returns the exit code.

    Raises:
        SystemExit: if that is the error.
        Exception: the error itself, with its traceback, if ``--debug`` was given and usage was not to blame.
    """
    debug = "--debug" in sys.argv and isinstance(error, Exception) and not isinstance(error, TyperException)
    if debug or isinstance(error, SystemExit):
        raise error
    text, code = _line(error)
    print(f"graphopt: error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _line(error: BaseException) -> tuple[str, int]:
    if isinstance(error, GraphoptError):
        return str(error), error.exit_code
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "graphopt"
        text = error.format_message().rstrip(".")
        text = text.replace("a valid int range", "a whole number")
        return f"{text}{'' if text.endswith('?') else ';'} '{command} --help' shows the usage", 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; an output appears whole or not at all", 130
    if isinstance(error, MemoryError):
        return "out of memory; nothing was written", 1
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    return f"bug in graphopt ({type(error).__name__}: {str(error)[:300]}); --debug shows where", 1
