"""Give a model of onnx's light test data real weights: `python tools/randomize.py SOURCE TARGET --seed N`.

Those files keep the topology of a known network, while a ConstantOfShape node stands for each large weight.
Here it becomes an initializer and, since these are of IR 3, is also listed as an input, as it once was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

NORMALIZATION = {1: (1.0, 0.1), 2: (0.0, 0.1), 3: (0.0, 0.1), 4: (1.0, 0.1)}  # input: mean and deviation


def randomize(model: onnx.ModelProto, seed: int) -> None:
    """Replace each ConstantOfShape of a constant shape in `model` by a drawn float32 initializer."""
    rng = np.random.default_rng(seed)
    graph = model.graph
    shapes = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    standing = {node.output[0]: node for node in graph.node if node.op_type == "ConstantOfShape"}
    for name, node in standing.items():
        shape = tuple(int(size) for size in shapes[node.input[0]])
        graph.initializer.append(numpy_helper.from_array(draw(graph, name, shape, rng), name))
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        graph.node.remove(node)
    drop(graph, {node.input[0] for node in standing.values()})


def draw(
    graph: onnx.GraphProto, name: str, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float32]:
    """A weight for what it feeds: He's initialization for matrices and kernels, else around 0 or 1."""
    mean, deviation = 0.0, 0.1
    if len(shape) > 1:
        deviation = float(np.sqrt(2 / np.prod(shape[1:])))
    else:
        mean, deviation = NORMALIZATION.get(normalization_input(graph, name), (mean, deviation))
    return np.asarray(rng.normal(mean, deviation, shape)).astype(np.float32)


def normalization_input(graph: onnx.GraphProto, name: str) -> int:
    """Which input of a BatchNormalization the value is, or -1."""
    norms = (node for node in graph.node if node.op_type == "BatchNormalization")
    return next((list(node.input).index(name) for node in norms if name in node.input), -1)


def drop(graph: onnx.GraphProto, names: set[str]) -> None:
    """Remove the initializers and inputs of these names."""
    for entries in (graph.initializer, graph.input):
        remove(entries, names)


def remove(entries: Any, names: set[str]) -> None:
    """Remove the entries of these names from a repeated field."""
    for entry in [entry for entry in entries if entry.name in names]:
        entries.remove(entry)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = onnx.load(options.source)
    randomize(model, options.seed)
    onnx.save(model, options.target)


if __name__ == "__main__":
    main()
