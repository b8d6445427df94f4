"""What tests of passes share: models from ONNX text, passes run on them, results compared in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import parser

from graphopt import graph as g
from graphopt.interface import Interface, differences
from graphopt.journal import Journal
from graphopt.model import Model
from graphopt.pipeline import Pass, Pipeline, Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU

Feeds = Mapping[str, Any]


def parse(text: str, opset: int = 17, functions: str = "") -> onnx.ModelProto:
    """A model from the text of its graph; functions follow it in ONNX's own syntax."""
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    model = parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> {text}\n{functions}")
    onnx.checker.check_model(model)
    return model


def run_passes(
    proto: onnx.ModelProto, *passes: Pass, worker: Worker, journal: Journal | None = None, keep: str = ""
) -> tuple[Model, Run]:
    """The model after these passes, and their run; it must be valid, with the interface it had."""
    model = Model.of(proto)
    run = Run(CPU, worker, journal or Journal(), frozenset(keep.split()))
    Pipeline(passes)(model, run)
    after = serialized(model)
    onnx.checker.check_model(after)
    assert differences(Interface.of(proto), Interface.of(after)) == []
    return model, run


def serialized(model: Model) -> onnx.ModelProto:
    """The model as its file says it, with all its data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.save(path)
        return onnx.load(path)


def ops(model: Model) -> Counter[str]:
    """How often each operator type occurs, subgraphs and functions included, Constants not."""
    return Counter(node.op_type for node in g.nodes(model.ir) if node.op_type != "Constant")


def compute(proto: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    """The outputs in ONNX Runtime with nothing optimized."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return list(ort.InferenceSession(proto.SerializeToString(), options).run(None, dict(feeds)))


def assert_same(before: onnx.ModelProto, after: Model, feeds: Feeds, rtol: float = 0.0) -> None:
    """Both models give the same outputs: type, shape and, within ``rtol``, values; NaN equals NaN."""
    for old, new in zip(compute(before, feeds), compute(serialized(after), feeds), strict=True):
        assert type(old) is type(new)
        if isinstance(old, np.ndarray) and old.dtype.kind in "fiu":
            assert new.dtype == old.dtype
            np.testing.assert_allclose(new, old, rtol=rtol, atol=0)
        else:
            np.testing.assert_array_equal(new, old)
