"""What tests of half precision share: conversion with all that must hold of its result."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx

from graphopt.interface import Interface, differences
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.halve.convert import Halved, halve
from tests.support import serialized

FLOAT, FLOAT16, BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16


def converted(
    proto: onnx.ModelProto,
    worker: Worker,
    half: str = "float16",
    kept: Collection[str] = (),
    *,
    keep_io: bool = True,
    emulate: bool = False,
) -> tuple[onnx.ModelProto, Halved]:
    """The model in half; if it was valid it still is, and has the interface that it had."""
    model, run = Model.of(proto), Run(CPU, worker)
    found = halve(model, run, half, kept, keep_io=keep_io, emulate=emulate)
    after = serialized(model)
    if not complaint(proto):
        assert complaint(after) == ""
    contracts = Interface.of(proto), Interface.of(after)
    if not keep_io:
        contracts = contracts[0].with_floats(), contracts[1].with_floats()
    frozen = contracts[0].overridable if proto.ir_version < 4 else ()
    assert differences(*contracts, frozen) == []
    return after, found


def complaint(proto: onnx.ModelProto) -> str:
    """What the checker or strict inference have against a model."""
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error)
    return ""


def types(proto: onnx.ModelProto) -> dict[str, int]:
    """The element types of all named tensors of the main graph, as inference finds them."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def assert_near(old: Any, new: Any, rtol: float = 4e-3, name: str = "") -> None:
    """Equal types and shapes; floats differ by what halves round, relative to the largest."""
    assert type(new) is type(old)
    if isinstance(old, list):
        assert len(new) == len(old)
        for one, other in zip(old, new, strict=True):
            assert_near(one, other, rtol, name)
        return
    old, new = np.asarray(old), np.asarray(new)
    assert (new.dtype, new.shape) == (old.dtype, old.shape)
    if old.dtype.kind != "f":
        np.testing.assert_array_equal(new, old)
        return
    assert np.array_equal(np.isnan(old), np.isnan(new))
    scale = float(np.abs(old[np.isfinite(old)]).max(initial=0.0))
    np.testing.assert_allclose(new, old, rtol=0, atol=rtol * scale + 1e-7, err_msg=name)
