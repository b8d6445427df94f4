"""Whether a target can run here: the execution provider is built in, and its device is there."""

from __future__ import annotations

import onnx
from onnx import parser

from graphopt.errors import GraphoptError
from graphopt.runtime.worker import Worker
from graphopt.target import Target

PROBE = '<ir_version: 8, opset_import: ["" : 17]> probe (float[1] x) => (float[1] y) { y = Neg (x) }'


def missing(target: Target) -> str:
    """Why nothing can run on the target here, in one line; empty if it can."""
    probe: onnx.ModelProto = parser.parse_model(PROBE)
    with Worker() as worker:
        try:
            with worker.opened(probe.SerializeToString(), target):
                return ""
        except GraphoptError as error:
            return str(error)
