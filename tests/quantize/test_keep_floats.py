"""A layer that stays on floats between integers computes on floats: the runtime rounds none by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.proof.executed import Executed
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.audit import audit
from graphopt_passes.quantize.insert_qdq import drop_unused, insert_qdq
from graphopt_passes.quantize.keep_floats import keep_floats
from graphopt_passes.quantize.placement import Placement
from graphopt_passes.quantize.scheme import Scheme
from tests.quantize.networks import images, sentences
from tests.quantize.simulation import grids_of
from tests.quantize.test_insert_qdq import feeds_of, optimized, weighted
from tests.support import compute, serialized

MATRICES = {"w": (4, 6), "v": (6, 8), "b": (8,), "u": (8, 4)}
CONV = {"w": (6, 4, 3, 3), "v": (8, 6, 3, 3), "u": (4, 8, 1, 1), "b": (8,)}


def _chain(middle: str, rank: str = "1,4,8,8", **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A layer between two others; its channels differ in size, so that one scale for all of them tells."""
    result = ",".join("abcd"[: rank.count(",") + 1])
    proto = weighted(f"agraph (float[{rank}] x) => (float[{result}] y) {{ {middle} }}", **shapes)
    for tensor in proto.graph.initializer:
        if tensor.name == "v":
            data = numpy_helper.to_array(tensor).copy()
            axis = 1 if "ConvTranspose" in middle or data.ndim == 2 else 0
            sizes = np.geomspace(1e-3, 1, data.shape[axis]).astype(np.float32)
            data *= sizes.reshape([-1 if i == axis else 1 for i in range(data.ndim)])
            tensor.CopyFrom(numpy_helper.from_array(data, "v"))
    return proto


CASES = {
    "Conv": _chain("a = Conv(x, w)  m = Conv(a, v, b)  y = Conv(m, u)", **CONV),
    "Conv without a bias": _chain("a = Conv(x, w)  m = Conv(a, v)  r = Relu(m)  y = Conv(r, u)", **CONV),
    "pools beside it": _chain(
        "a = Conv(x, w)  p = MaxPool<kernel_shape = [2,2]>(a)  m = Conv(p, v, b)  r = Relu(m)"
        "  q = MaxPool<kernel_shape = [2,2]>(r)  y = Conv(q, u)",
        **CONV,
    ),
    "groups": _chain(
        "a = Conv(x, w)  m = Conv<group = 2>(a, v)  y = Conv(m, u)", **(CONV | {"v": (8, 3, 3, 3)})
    ),
    "another reader": _chain(
        "a = Conv(x, w)  m = Conv<pads = [1,1,1,1]>(a, v, b)  s = Conv<pads = [1,1,1,1]>(a, v)"
        "  t = Add(m, s)  y = Conv(t, u)",
        **CONV,
    ),
    "ConvTranspose": _chain(
        "a = Conv(x, w)  m = ConvTranspose(a, v, b)  y = Conv(m, u)", **(CONV | {"v": (6, 8, 3, 3)})
    ),
    "Gemm": _chain("a = Gemm(x, w)  h = Relu(a)  m = Gemm(h, v, b)  y = Gemm(m, u)", "64,4", **MATRICES),
    "Gemm without a bias": _chain(
        "a = Gemm(x, w)  h = Relu(a)  m = Gemm<transB = 1>(h, v)  r = Relu(m)  y = Gemm(r, u)",
        "64,4",
        **(MATRICES | {"v": (8, 6)}),
    ),
    "a product and a sum": _chain(
        "a = Gemm(x, w)  h = Relu(a)  p = MatMul(h, v)  m = Add(b, p)  y = Gemm(m, u)", "64,4", **MATRICES
    ),
    "a product of more dims": _chain(
        "a = MatMul(x, w)  h = Relu(a)  p = MatMul(h, v)  m = Add(p, b)  y = MatMul(m, u)",
        "2,3,4",
        **MATRICES,
    ),
}


def _mixed(proto: onnx.ModelProto, floats: Any, worker: Worker, *, kept: bool) -> Model:
    model = Model.of(proto)
    run = Run(CPU, worker)
    placement = Placement(model, run)
    chosen = frozenset(name for name in placement.parts if name not in floats)
    grids = grids_of(proto, feeds_of(proto, 0))
    insert_qdq(model, run, placement, Scheme(chosen, grids))
    if kept:
        keep_floats(model, run)
    drop_unused(model)
    onnx.checker.check_model(serialized(model), full_check=True)
    return model


def _unasked(model: Model, worker: Worker) -> set[str]:
    found = audit(Executed.of(model, worker=worker, threads=1)).problems
    return {problem.unit for problem in found if problem.kind == "unasked"}


def _change(proto: onnx.ModelProto, model: Model) -> float:
    """How far what runs is from what is written."""
    feeds = feeds_of(proto, 1)
    (plain,), (fast,) = compute(serialized(model), feeds), optimized(model, feeds)
    return float(np.square(fast - plain).sum() / np.square(plain).sum())


@pytest.mark.parametrize("proto", CASES.values(), ids=CASES.keys())
def test_what_is_left_on_floats_stays_there(proto: onnx.ModelProto, worker: Worker) -> None:
    bare, kept = (_mixed(proto, {"m", "p"}, worker, kept=kept) for kept in (False, True))
    assert not _unasked(kept, worker)
    feeds = feeds_of(proto, 1)
    np.testing.assert_array_equal(compute(serialized(kept), feeds)[0], compute(serialized(bare), feeds)[0])
    assert _change(proto, kept) < 1e-3


@pytest.mark.parametrize(
    "name", ["Conv", "Conv without a bias", "pools beside it", "Gemm", "a product and a sum"]
)
def test_the_runtime_rounds_it_otherwise_and_the_audit_tells(name: str, worker: Worker) -> None:
    """Should an ONNX Runtime no longer do so, all of this is superfluous."""
    proto = CASES[name]
    bare, kept = (_mixed(proto, {"m", "p"}, worker, kept=kept) for kept in (False, True))
    assert _unasked(bare, worker)
    assert _change(proto, bare) > 4 * _change(proto, kept)


@pytest.mark.parametrize("kind", [images, sentences])
@pytest.mark.parametrize("seed", range(12))
def test_any_placement_is_what_runs(kind: Any, seed: int, worker: Worker) -> None:
    proto = kind(seed, 17).model()
    names = list(Placement(Model.of(proto), Run(CPU, worker)).parts)
    rng = np.random.default_rng(seed)
    model = _mixed(proto, {name for name in names if rng.random() < 0.4}, worker, kept=True)
    assert not _unasked(model, worker)
