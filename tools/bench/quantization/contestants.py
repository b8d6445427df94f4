"""Who takes part, and the command by which each quantizes a model."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.bench.roster import Roster

GRAPHOPT = "graphopt"
PEERS = {
    "ORT default": ("peer_onnxruntime", "default"),
    "ORT U8S8 min-max": ("peer_onnxruntime", "minmax"),
    "ORT U8S8 entropy": ("peer_onnxruntime", "entropy"),
    "NNCF default": ("peer_nncf", "default"),
    "NNCF accurate": ("peer_nncf", "accurate"),
    "NNCF transformer": ("peer_nncf", "transformer"),
}


def command(name: str, model: Path, samples: Path, result: Path, peers_python: str) -> list[str]:
    """Command by which the contestant `name` quantizes `model` into `result`, calibrated on `samples`.

    graphopt runs in this interpreter, the peers in `peers_python`.
    """
    if name == GRAPHOPT:
        options = ["--precision", "int8", "--data", str(samples), "--threads", "1"]
        return [sys.executable, "-m", "graphopt", "optimize", str(model), str(result), *options]
    module, setting = PEERS[name]
    arguments = [str(model), str(samples), str(result), setting]
    return [peers_python, "-m", f"tools.bench.quantization.{module}", *arguments]


ROSTER = Roster([GRAPHOPT], PEERS, command)
