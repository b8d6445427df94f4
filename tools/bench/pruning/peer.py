"""onnxsim's pruner: simplify, prune on the samples and, where channels went, refit what is left.

The result is simplified, too, since magnitude pruning leaves the old weights in the file.

python -m tools.bench.pruning.peer MODEL SAMPLES RESULT METHOD RATIO, where RATIO is a share, or 2:4.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxsim

from tools.bench.quantization import samples

Feeds = list[dict[str, Any]]
Prune = Callable[[onnx.ModelProto, Feeds, dict[str, Any]], onnx.ModelProto]


def magnitude(model: onnx.ModelProto, feeds: Feeds, much: dict[str, Any]) -> onnx.ModelProto:
    """The smallest weights of each row."""
    return onnxsim.apply_magnitude_pruning(model, **much)


def global_magnitude(model: onnx.ModelProto, feeds: Feeds, much: dict[str, Any]) -> onnx.ModelProto:
    """The smallest weights of the whole model."""
    return onnxsim.apply_magnitude_pruning(model, global_sparsity=True, **much)


def wanda(model: onnx.ModelProto, feeds: Feeds, much: dict[str, Any]) -> onnx.ModelProto:
    """The smallest products of weight and activation (Sun et al., 2023)."""
    return onnxsim.apply_wanda_pruning(model, calibration_data=feeds, **much)


def sparsegpt(model: onnx.ModelProto, feeds: Feeds, much: dict[str, Any]) -> onnx.ModelProto:
    """Second-order pruning that makes up for what it removes (Frantar and Alistarh, 2023)."""
    return onnxsim.apply_sparsegpt_pruning(model, calibration_data=feeds, **much)


def channels(model: onnx.ModelProto, feeds: Feeds, much: dict[str, Any]) -> onnx.ModelProto:
    """Attention heads and channels of small L2 norm, then ridge regression of what is left."""
    pruned = onnxsim.apply_structured_pruning(onnxsim.apply_attention_head_pruning(model, **much), **much)
    return onnxsim.apply_pruning_finetune(model, pruned, calibration_data=feeds)


def wanda_channels(model: onnx.ModelProto, feeds: Feeds, much: dict[str, Any]) -> onnx.ModelProto:
    """The same by norms of weights and activations."""
    heads = onnxsim.apply_attention_head_wanda_pruning(model, calibration_data=feeds, **much)
    pruned = onnxsim.apply_structured_wanda_pruning(heads, calibration_data=feeds, **much)
    return onnxsim.apply_pruning_finetune(model, pruned, calibration_data=feeds)


METHODS: dict[str, Prune] = {
    "magnitude": magnitude,
    "global-magnitude": global_magnitude,
    "wanda": wanda,
    "sparsegpt": sparsegpt,
    "channels": channels,
    "wanda-channels": wanda_channels,
}


def amount(ratio: str) -> dict[str, Any]:
    """How much to remove, as these functions take it: a share, or N kept of M."""
    if ":" in ratio:
        kept, group = map(int, ratio.split(":"))
        return {"n": kept, "m": group}
    return {"sparsity": float(ratio)}


def main() -> None:
    """Prune one model."""
    source, folder, result = map(Path, sys.argv[1:4])
    method, ratio = sys.argv[4:6]
    model, _ = onnxsim.simplify(onnx.load(source))
    pruned = METHODS[method](model, list(samples.read(folder)), amount(ratio))
    simplified, _ = onnxsim.simplify(pruned)
    onnx.checker.check_model(simplified, full_check=True)
    onnx.save(simplified, result)


if __name__ == "__main__":
    main()
