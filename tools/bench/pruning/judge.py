"""Judge pruned models: as quantized ones are, and by what is left in the file.

python -m tools.bench.pruning.judge takes the requests of `tools.bench.quantization.judge`. The model that all
start from, and are compared with, is what the exact passes make of the task's: they alone make some models
several times as fast, and no pruner shall have that counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tools.bench.conversion import blocks
from tools.bench.judge import walk
from tools.bench.quantization import judge as quality
from tools.bench.roster import ORIGINAL

Facts = dict[str, Any]
LEVEL = 6  # of zlib, as gzip has it by default


def judge(request: dict[str, Any]) -> dict[str, Facts]:
    """Quality and speed of each model of the request, and what is in its file, the original's included."""
    facts = quality.judge(request | {"macs": False})
    files = {ORIGINAL: request["model"], **request["models"]}
    sample = Path(request["samples"])
    for name in [name for name, entry in facts.items() if not entry.get("why")]:
        file = Path(files[name])
        facts[name] |= contents(file) | {"macs": macs(file, sample)}
    return facts


def macs(model: Path, samples: Path) -> int | None:
    """Multiply-accumulates of one run on the first sample; None where the profile does not tell."""
    try:
        return sum(quality.executed(model, samples, "--plain").values())
    except ValueError:
        return None


def contents(model: Path) -> Facts:
    """How many weights there are and are zero, bytes of the file, and bytes when it is compressed."""
    weights = zeros = 0
    for array in matrices(onnx.load(model)):
        weights += array.size
        zeros += int((array == 0).sum())
    size = model.stat().st_size
    return {"weights": weights, "zeros": zeros, "bytes": size, "compressed": compressed(model)}


def matrices(model: onnx.ModelProto) -> Iterator[NDArray[Any]]:
    """Constant float tensors of at least two axes that a node reads: initializers and Constant nodes."""
    nodes = list(walk(model.graph))
    read = {name for node in nodes for name in node.input}
    kept = (tensor for tensor in model.graph.initializer if tensor.name in read)
    constants = (
        attribute.t
        for node in nodes
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    )
    for tensor in (*kept, *constants):
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            yield np.asarray(numpy_helper.to_array(tensor))


def compressed(file: Path) -> int:
    """Bytes of a file as zlib packs it."""
    packer = zlib.compressobj(LEVEL)
    return sum(len(packer.compress(block)) for block in blocks([file])) + len(packer.flush())


def prepare(request: dict[str, Any]) -> Facts:
    """Write the samples, and beside their folder the model after the exact passes."""
    about = quality.prepare(request)
    exact = Path(request["samples"]).with_name("exact.onnx")
    command = [sys.executable, "-m", "graphopt", "optimize", about["model"], str(exact), "--no-measure"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return about | {"model": str(exact)}


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    json.dump(prepare(request) if "prepare" in request else judge(request), sys.stdout)


if __name__ == "__main__":
    main()
