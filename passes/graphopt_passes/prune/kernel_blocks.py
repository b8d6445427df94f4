"""How many channels the Conv kernels of this machine compute at a time: found by timing some.

ONNX Runtime's blocked kernels fill up channels to a multiple of 8 or 16, by what the CPU has, and take as
long for 36 channels as for 48. Four Convs of 36, 40 and 48 channels tell: their work is in the proportion of
0.56 to 0.69 to 1, and so is their time if channels are not filled up.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.model import Model
from graphopt.precision import Task
from graphopt.runtime.values import Tensor
from graphopt.runtime.worker import Worker
from graphopt.target import Target

_WIDTHS = (36, 40, 48)
_INPUT = [1, 16, 28, 28]
_DEPTH = 4
_SAME = 0.85  # of the time for more channels: filled up to as many
_BUDGET_S, _ROUNDS = 1.0, 200


def block(task: Task) -> int:
    """4, 8 or 16 channels.

    Raises:
        WorkerError: the target does not run Convs.
    """
    few, more, most = _seconds(task.worker, task.target)
    if more > _SAME * most:
        return 16
    return 8 if few > _SAME * more else 4


def _seconds(worker: Worker, target: Target) -> list[float]:
    """The least seconds of a run on one thread, in turns: what disturbs the machine counts least."""
    with ExitStack() as stack:
        paths = [stack.enter_context(worker.pool.written(_convs(width))) for width in _WIDTHS]
        sessions = [stack.enter_context(worker.opened(path, target, 1)) for path in paths]
        times = worker.time(sessions, {"x": Tensor.of(np.zeros(_INPUT, np.float32))}, _ROUNDS, _BUDGET_S)
    return [min(one) for one in times]


def _convs(width: int) -> Model:
    sizes = [_INPUT[1], *[width] * _DEPTH]
    weights = [
        numpy_helper.from_array(np.full((made, read, 3, 3), 1e-3, np.float32), f"w{place}")
        for place, (read, made) in enumerate(pairwise(sizes))
    ]
    names = ["x", *(f"y{place}" for place in range(_DEPTH))]
    nodes = [
        helper.make_node("Conv", [names[place], f"w{place}"], [names[place + 1]], pads=[1] * 4)
        for place in range(_DEPTH)
    ]
    first = helper.make_tensor_value_info("x", TensorProto.FLOAT, _INPUT)
    last = helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, [1, width, *_INPUT[2:]])
    graph = helper.make_graph(nodes, "convs", [first], [last], weights)
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    return Model.of(proto)
