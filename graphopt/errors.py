"""The one exception family. Each class carries the exit code that the command line documents."""

from __future__ import annotations

from typing import ClassVar


class GraphoptError(Exception):
    """Anything that stops graphopt; its text is one line: what, where, and what to do."""

    exit_code: ClassVar[int] = 1


class SystemRefusedError(GraphoptError):
    """The operating system refused: disk full, no permission, out of memory."""

    exit_code = 1


class UsageError(GraphoptError):
    """The call itself is wrong: no such input, output over input, unknown pass or target."""

    exit_code = 2


class InvalidModelError(GraphoptError):
    """The file is not a valid ONNX model: truncated, cyclic, undefined value, bad external data."""

    exit_code = 3


class UnsupportedModelError(GraphoptError):
    """The model is valid ONNX, but holds something that graphopt would have to drop."""

    exit_code = 3


class ParityError(GraphoptError):
    """No parity with the original can be had, or with ``strict`` a budget was missed."""

    exit_code = 4


class DataError(GraphoptError):
    """The user's data does not fit the model: missing input, wrong shape or type, NaN."""

    exit_code = 5


class MissingRuntimeError(SystemRefusedError):
    """ONNX Runtime is not installed."""


class WorkerError(GraphoptError):
    """A session could not be made or run; ``reason`` is ``failed``, ``died``, ``timeout`` or ``memory``."""

    def __init__(self, message: str, reason: str = "failed") -> None:
        super().__init__(message)
        self.reason = reason
