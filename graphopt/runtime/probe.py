"""Whether a target runs on this machine: the execution provider is built in, and its device starts."""

from __future__ import annotations

from graphopt.errors import UsageError, WorkerError
from graphopt.runtime.worker import Worker
from graphopt.target import CPU, Target

_PROBE = '<ir_version: 8, opset_import: ["" : 17]> probe (float[1] x) => (float[1] y) { y = Neg (x) }'


def missing(worker: Worker, target: Target) -> str:
    """Why no model can run on the target here, in one line; empty if one can."""
    if target.providers == CPU.providers:
        return ""
    offered = worker.providers()
    if absent := [name for name in target.providers if name not in offered]:
        return f"{absent[0]} is not available here"
    from onnx import parser

    try:
        with worker.opened(parser.parse_model(_PROBE).SerializeToString(), target):
            return ""
    except WorkerError as error:
        return str(error)


def require(worker: Worker, target: Target) -> None:
    """Refuse a target that no model can run on here.

    Raises:
        UsageError: it does not start, or is not installed.
    """
    if reason := missing(worker, target):
        told = "install graphopt[gpu] and the device's driver, or choose another target"
        raise UsageError(f"target '{target.name}' does not run here, {reason}: {told}")
