"""The optimizers that are compared, each as the program that a user would write with its defaults."""

from __future__ import annotations

import sys

ONNXSIM = """
import sys, onnx, onnxsim
model, _ = onnxsim.simplify(sys.argv[1])
onnx.save(model, sys.argv[2])
"""

ONNXSLIM = """
import sys, onnxslim
onnxslim.slim(sys.argv[1], sys.argv[2])
"""

ONNXSCRIPT = """
import sys, onnx_ir, onnxscript.optimizer
model = onnx_ir.load(sys.argv[1])
onnx_ir.save(onnxscript.optimizer.optimize(model), sys.argv[2])
"""

ORT_BASIC = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.optimized_model_filepath = sys.argv[2]
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""

PEERS = {"onnxsim": ONNXSIM, "onnxslim": ONNXSLIM, "onnxscript": ONNXSCRIPT, "ort-basic": ORT_BASIC}
GRAPHOPT = "graphopt"
NAMES = [GRAPHOPT, *PEERS]


def command(name: str, source: str, result: str, peers_python: str) -> list[str]:
    """Command by which the contestant `name` optimizes the file `source` into `result`.

    graphopt runs in this interpreter, without verification and measurement; the peers, which do neither,
    run in `peers_python`.
    """
    if name == GRAPHOPT:
        tail = ["optimize", source, result, "--no-verify", "--no-measure"]
        return [sys.executable, "-m", "graphopt", *tail]
    return [peers_python, "-c", PEERS[name], source, result]
