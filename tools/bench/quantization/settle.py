"""Give networks of drawn weights the statistics that training would have given their BatchNormalizations.

Without them activations grow or vanish from layer to layer, and no quantizer could be told from another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tools import models
from tools.bench.quantization.quality import opened
from tools.bench.quantization.task import Array, Feeds


def settled(name: str, samples: Sequence[Feeds]) -> Path:
    """The model `name` with statistics of these samples and logits as outputs, made once and then cached."""
    target = models.cache_folder() / "settled" / f"{name}.onnx"
    if not target.exists():
        model = onnx.load(models.path(name))
        without_softmax(model)
        settle(model, samples)
        target.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, target.with_suffix(".part"))
        target.with_suffix(".part").replace(target)
    return target


def without_softmax(model: onnx.ModelProto) -> None:
    """Let the model give logits: probabilities of drawn weights are so small that they say little."""
    (output,) = model.graph.output
    last = next(node for node in model.graph.node if output.name in node.output)
    if last.op_type == "Softmax":
        output.name = last.input[0]
        model.graph.node.remove(last)


def settle(model: onnx.ModelProto, samples: Sequence[Feeds]) -> None:
    """Set mean and variance of each BatchNormalization, in order, to those of what it reads."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            found = np.concatenate(values(model, node.input[0], samples))
            channels = found.swapaxes(0, 1).reshape(found.shape[1], -1)
            for name, statistic in ((node.input[3], np.mean), (node.input[4], np.var)):
                new = statistic(channels, axis=1).astype(np.float32)
                weights[name].CopyFrom(numpy_helper.from_array(new, name))


def values(model: onnx.ModelProto, name: str, samples: Sequence[Feeds]) -> list[Array]:
    """A value of the graph for each sample."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    with opened(probe.SerializeToString()) as run:
        return [run(sample)[0] for sample in samples]
