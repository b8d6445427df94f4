"""Whether a target runs on this machine: the execution provider is built in, and its device starts."""

from __future__ import annotations

from graphopt.errors import GraphoptError
from graphopt.runtime.worker import Worker
from graphopt.target import CPU, Target

_PROBE = '<ir_version: 8, opset_import: ["" : 17]> probe (float[1] x) => (float[1] y) { y = Neg (x) }'


def missing(worker: Worker, target: Target) -> str:
    """Why no model can run on the target here, in one line; empty if one can."""
    if target.providers == CPU.providers:
        return ""
    if target.providers[0] not in worker.providers():
        return f"{target.providers[0]} is not available here"
    from onnx import parser

    try:
        with worker.opened(parser.parse_model(_PROBE).SerializeToString(), target):
            return ""
    except GraphoptError as error:
        return str(error)
