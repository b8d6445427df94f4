"""The oracle of cuts: a model without some channels computes what it computes with these made ineffective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from graphopt.model import Model
from graphopt_passes.axes import Analysis, Group, masked, shrink

Kept = Mapping[Group, NDArray[np.int64]]
Feeds = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What came of one cut.

    Attributes:
        error: the largest difference of any output, relative to that output's largest element.
        noise: the same when inputs move by one unit in the last place; cut models can be ill-conditioned.
        values: how many elements all outputs have.
        bytes: of the model's file, before and after.
    """

    error: float
    noise: float
    values: int
    bytes: tuple[int, int]


def drawn(analysis: Analysis, removed: float, seed: int) -> dict[Group, NDArray[np.int64]]:
    """For each group random units that stay, ascending: all but a share of them, at least one."""
    rng = np.random.default_rng(seed)
    counts = {group: max(group.width - round(group.width * removed), 1) for group in analysis.groups}
    return {group: np.sort(rng.permutation(group.width)[:count]) for group, count in counts.items()}


def check(model: Model, kept: Kept, feeds: Feeds) -> Facts:
    """Cut and mask, and compare what both compute in ONNX Runtime with nothing optimized.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: the result is not valid.
    """
    small, oracle = shrink(model, kept), masked(model, kept)
    with TemporaryDirectory() as folder:
        paths = Path(folder, "small.onnx"), Path(folder, "masked.onnx")
        small.save(paths[0])
        oracle.save(paths[1])
        validate(paths[0])
        found, wanted = (run(path, feeds) for path in paths)
        moved = run(paths[1], {name: move(value) for name, value in feeds.items()})
    sizes = model.file_size(), small.file_size()
    return Facts(largest(found, wanted), largest(moved, wanted), sum(one.size for one in wanted), sizes)


def validate(path: Path) -> None:
    """Hold a file against the checker and strict shape inference."""
    onnx.checker.check_model(str(path), full_check=True)
    strictly = {"check_type": True, "strict_mode": True, "data_prop": True}
    onnx.shape_inference.infer_shapes_path(str(path), str(path), **strictly)


def run(path: Path, feeds: Feeds) -> list[NDArray[Any]]:
    """The outputs in ONNX Runtime with nothing optimized."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def move(value: NDArray[Any]) -> NDArray[Any]:
    """Floats one unit in the last place away from zero."""
    return np.nextafter(value, np.copysign(np.inf, value)) if value.dtype.kind == "f" else value


def largest(found: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> float:
    """The largest error of any output."""
    return max((error(a, b) for a, b in zip(found, wanted, strict=True)), default=0.0)


def error(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The largest difference relative to the largest element of b; infinite for other shapes or types."""
    if (a.shape, a.dtype) != (b.shape, b.dtype) or not np.array_equal(np.isnan(a), np.isnan(b)):
        return np.inf
    scale = np.abs(b[np.isfinite(b)]).max(initial=0)
    return float(np.abs(np.nan_to_num(a - b)).max(initial=0) / (scale or 1))
