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
from graphopt_passes.quantize.placement import Placement, consistent
from graphopt_passes.quantize.scheme import Scheme
from tests.quantize.networks import images, sentences
from tests.quantize.simulation import grids_of
from tests.quantize.test_insert_qdq import feeds_of, optimized, weighted
from tests.support import compute, serialized

MATRICES = {"w": (4, 6), "v": (6, 8), "b": (8,), "u": (8, 4)}
CONV = {"w": (6, 4, 3, 3), "v": (8, 6, 3, 3), "u": (4, 8, 1, 1), "b": (8,)}


def _chain(
    middle: str, rank: str = "1,4,8,8", *, shown: bool = False, **shapes: tuple[int, ...]
) -> onnx.ModelProto:
    """A layer between two others; its channels differ in size, so that one scale for all of them tells."""
    result = ",".join("abcd"[: rank.count(",") + 1])
    outputs = f"float[{result}] y" + (f", float[{result}] m" if shown else "")
    proto = weighted(f"agraph (float[{rank}] x) => ({outputs}) {{ {middle} }}", **shapes)
    for node in proto.graph.node:
        node.name = "keep me" if node.output[0] == "m" else ""
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
        "  c = Conv(m, u)  d = Conv(s, u)  y = Add(c, d)",
        **CONV,
    ),
    "ConvTranspose": _chain(
        "a = Conv(x, w)  m = ConvTranspose(a, v, b)  y = Conv(m, u)", **(CONV | {"v": (6, 8, 3, 3)})
    ),
    "an output": _chain("a = Conv(x, w)  m = Conv(a, v, b)  y = Conv(m, u)", shown=True, **CONV),
    "one channel": _chain(
        "a = Conv(x, w)  m = Conv(a, v, b)  y = Conv(m, u)", **(CONV | {"w": (1, 4, 3, 3), "v": (8, 1, 3, 3)})
    ),
    "shuffled channels": _chain(
        """a = Conv(x, w)  h = Relu(a)  f = Constant<value_ints = [1,2,3,6,6]>()  g = Reshape(h, f)
        t = Transpose<perm = [0,2,1,3,4]>(g)  k = Constant<value_ints = [1,6,6,6]>()  s = Reshape(t, k)
        m = Conv(s, v, b)  y = Conv(m, u)""",
        **CONV,
    ),
    "a turned ConvTranspose": _chain(
        """a = Conv(x, w)  h = Relu(a)  t = Transpose<perm = [0,1,3,2]>(h)  m = ConvTranspose(t, v, b)
        y = Conv(m, u)""",
        **(CONV | {"v": (6, 8, 3, 3)}),
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
    "vectors": _chain(
        "a = MatMul(x, w)  h = Relu(a)  p = MatMul(h, v)  m = Add(p, b)  y = MatMul(m, u)", "4", **MATRICES
    ),
    "a product of more dims": _chain(
        "a = MatMul(x, w)  h = Relu(a)  p = MatMul(h, v)  m = Add(p, b)  y = MatMul(m, u)",
        "2,3,4",
        **MATRICES,
    ),
}


UNTOUCHED = {
    "a computed bias": "a = Gemm(x, w)  h = Relu(a)  m = Gemm(h, v, h)  r = Relu(m)  y = Gemm(r, u)",
    "a sum of two products": "a = Gemm(x, w)  h = Relu(a)  p = MatMul(h, v)  m = Add(p, h)  y = Gemm(m, u)",
    "a bare product": "a = Gemm(x, w)  h = Relu(a)  m = MatMul(h, v)  r = Relu(m)  y = Gemm(r, u)",
}


def _mixed(
    proto: onnx.ModelProto, floats: Any, worker: Worker, *, kept: bool, keep: frozenset[str] = frozenset()
) -> Model:
    model = Model.of(proto)
    run = Run(CPU, worker, keep=keep)
    placement = Placement(model, run)
    chosen = consistent(placement, [name for name in placement.parts if name not in floats])
    grids = grids_of(proto, feeds_of(proto, 0))
    integers = insert_qdq(model, run, placement, Scheme(chosen, grids))
    if kept:
        keep_floats(model, run, integers)
    drop_unused(model)
    onnx.checker.check_model(serialized(model), full_check=True)
    return model


def _unasked(model: Model, worker: Worker) -> set[str]:
    found = audit(Executed.of(model, worker=worker, threads=1)).problems
    return {problem.unit for problem in found if problem.kind == "unasked"}


def _change(proto: onnx.ModelProto, model: Model) -> float:
    """How far what runs is from what is written, over all outputs."""
    feeds = feeds_of(proto, 1)
    pairs = list(zip(compute(serialized(model), feeds), optimized(model, feeds), strict=True))
    return max(float(np.square(b - a).sum() / np.square(a).sum()) for a, b in pairs)


def _assert_same(proto: onnx.ModelProto, one: Model, other: Model) -> None:
    feeds = feeds_of(proto, 1)
    for a, b in zip(compute(serialized(one), feeds), compute(serialized(other), feeds), strict=True):
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_on_floats_stays_there(name: str, worker: Worker) -> None:
    """Should an ONNX Runtime no longer round what it is not asked to, all of this is superfluous."""
    proto = CASES[name]
    bare, kept = (_mixed(proto, {"m", "p"}, worker, kept=kept) for kept in (False, True))
    assert _unasked(bare, worker) and not _unasked(kept, worker)
    _assert_same(proto, bare, kept)
    rest = 1e-3 if name == "another reader" else 1e-9  # sums of integers are rounded otherwise
    assert _change(proto, kept) < rest


@pytest.mark.parametrize("text", UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_what_the_runtime_leaves_alone_is_not_changed(text: str, worker: Worker) -> None:
    proto = _chain(text, "64,4", **(MATRICES | {"v": (6, 6), "b": (6,), "u": (6, 4)}))
    bare, kept = (_mixed(proto, {"m", "p"}, worker, kept=kept) for kept in (False, True))
    assert list(serialized(kept).graph.node) == list(serialized(bare).graph.node)
    assert not _unasked(kept, worker)


def test_kept_products_are_not_changed(worker: Worker) -> None:
    proto = CASES["Gemm"]
    bare, kept = (
        _mixed(proto, {"m"}, worker, kept=kept, keep=frozenset({"keep me"})) for kept in (False, True)
    )
    assert [node.input[2] for node in serialized(kept).graph.node if node.name == "keep me"] == ["b"]
    assert not _unasked(kept, worker)
    _assert_same(proto, bare, kept)


def test_what_was_quantized_before_stays(worker: Worker) -> None:
    """A zero point may be omitted by an empty name, and the runtime rounded this weight before, too."""
    proto = weighted(
        """agraph (float[1,6,8,8] x) => (float[1,8,6,6] y) { s = Constant<value = float {0.02}>()
        q = QuantizeLinear(x, s)  d = DequantizeLinear(q, s, )  m = Conv(d, v, b)  k = QuantizeLinear(m, s)
        y = DequantizeLinear(k, s) }""",
        v=(8, 6, 3, 3),
        b=(8,),
    )
    model = Model.of(proto)
    keep_floats(model, Run(CPU, worker), ())
    assert list(serialized(model).graph.node) == list(serialized(Model.of(proto)).graph.node)
    integers = [value for node in model.ir.graph for value in node.outputs if value.name in ("q", "k")]
    keep_floats(model, Run(CPU, worker), integers)
    _assert_same(proto, model, Model.of(proto))
    assert not _unasked(model, worker)


@pytest.mark.parametrize("kind", [images, sentences])
@pytest.mark.parametrize("seed", range(12))
def test_any_placement_is_what_runs(kind: Any, seed: int, worker: Worker) -> None:
    proto = kind(seed, 17).model()
    names = list(Placement(Model.of(proto), Run(CPU, worker)).parts)
    rng = np.random.default_rng(seed)
    floats = {name for name in names if rng.random() < 0.4}
    bare, kept = (_mixed(proto, floats, worker, kept=kept) for kept in (False, True))
    assert not _unasked(kept, worker)
    _assert_same(proto, bare, kept)
