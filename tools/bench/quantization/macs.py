"""Multiply-accumulates that ONNX Runtime really executes, by node type, read from its profile of one run.

python -m tools.bench.quantization.macs MODEL SAMPLE.npz prints {type: multiply-accumulates} as JSON. The
profile has the shapes of all that a kernel reads and makes, fused operators and nodes of subgraphs included.
It is a process of its own, as a bad graph can end it.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Shape = list[int]
Rule = Callable[[Sequence[Shape], Shape], int]


def convolution(weight: int) -> Rule:
    """Every output element is a sum over a kernel [channels out, channels in / group, …]."""
    return lambda inputs, output: math.prod(output) * math.prod(inputs[weight][1:])


def product(inputs: Sequence[Shape], output: Shape) -> int:
    """Every output element is a sum over the last axis of the first factor."""
    return math.prod(output) * inputs[0][-1]


def recurrent(inputs: Sequence[Shape], output: Shape) -> int:
    """Each step multiplies by W [directions, …] and R [directions, …]."""
    steps, batch, _ = inputs[0]
    return steps * batch * (math.prod(inputs[1]) + math.prod(inputs[2]))


def attention(inputs: Sequence[Shape], output: Shape) -> int:
    """The projections, and both products of sequence by sequence."""
    batch, length, _ = inputs[0]
    return batch * length * math.prod(inputs[1]) + 2 * batch * length * length * output[-1]


INTEGER: dict[str, Rule] = {
    "QLinearConv": convolution(3),
    "ConvInteger": convolution(1),
    "QGemm": product,
    "QLinearMatMul": product,
    "MatMulInteger": product,
    "MatMulIntegerToFloat": product,
    "DynamicQuantizeMatMul": product,
    "DynamicQuantizeLSTM": recurrent,
    "QAttention": attention,
}
FLOAT: dict[str, Rule] = {
    "Conv": convolution(1),
    "ConvTranspose": lambda inputs, output: math.prod(inputs[0]) * math.prod(inputs[1][1:]),
    "Gemm": product,
    "MatMul": product,
    "LSTM": recurrent,
    "GRU": recurrent,
}


def count(events: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Multiply-accumulates by node type in the events of a profile."""
    found: Counter[str] = Counter()
    for event in events:
        facts = event.get("args", {})
        rule = {**FLOAT, **INTEGER}.get(facts.get("op_name", ""))
        if rule is not None and event["name"].endswith("_kernel_time"):
            inputs, outputs = (
                [shape for entry in facts[key] for shape in entry.values()]
                for key in ("input_type_shape", "output_type_shape")
            )
            found[facts["op_name"]] += rule(inputs, outputs[0])
    return dict(found)


def integer_share(executed: dict[str, int], original: dict[str, int]) -> float:
    """Percentage of the original's multiply-accumulates that are executed in integers."""
    integer = sum(macs for kind, macs in executed.items() if kind in INTEGER)
    return 100 * integer / max(sum(original.values()), 1)


def profile(model: str, sample: Path, optimized: bool) -> list[dict[str, Any]]:
    """Events of one run; weights are not packed, as those that are have no shape in the profile."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder, np.load(sample) as feeds:
        options.profile_file_prefix = f"{folder}/profile"
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events


def main() -> None:
    """Print the counts of one model, as optimized by ONNX Runtime or, with `--plain`, as it is written."""
    json.dump(count(profile(sys.argv[1], Path(sys.argv[2]), "--plain" not in sys.argv)), sys.stdout)


if __name__ == "__main__":
    main()
