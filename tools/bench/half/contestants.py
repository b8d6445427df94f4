"""Who takes part, and the command by which each converts a model to half precision."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.bench.roster import Roster

GRAPHOPT = "graphopt"
PEERS = {
    "onnxconverter": "onnxconverter",
    "onnxconverter auto": "onnxconverter-auto",
    "ORT transformers": "transformers",
    "ModelOpt autocast": "modelopt",
}


def command(name: str, model: Path, samples: Path, result: Path, peers_python: str) -> list[str]:
    """Command by which `name` converts `model` for GPUs into `result`; inputs and outputs keep their types.

    graphopt runs in this interpreter, the peers in `peers_python`. `samples` is for those who calibrate.
    """
    if name == GRAPHOPT:
        options = ["--precision", "fp16", "--target", "cuda", "--data", str(samples)]
        return [sys.executable, "-m", "graphopt", "optimize", str(model), str(result), *options]
    arguments = [str(model), str(samples), str(result), PEERS[name]]
    return [peers_python, "-m", "tools.bench.half.peer", *arguments]


ROSTER = Roster([GRAPHOPT], PEERS, command)
