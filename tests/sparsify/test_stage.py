"""--sparsity: zeros where they were asked for, the rest fitted to it, a reason for all other layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.report import PrunedLayer
from tests.support import compute, parse, serialized

TEXT = """g (float[n,3,10,10] x, float[16,3,3,3] u, float[16] a, float[24,16,3,3] v, float[24] b,
float[24,1,3,3] s, float[16,24,1,1] w, float[16,10] m, float[10] c) => (float[n,10] y) {
p = Conv<pads = [1,1,1,1]>(x, u, a)  q = Relu(p)  r = Conv<pads = [1,1,1,1], strides = [2,2]>(q, v, b)
t = Relu(r)  d = Conv<group = 24, pads = [1,1,1,1]>(t, s)  e = Relu(d)  f = Conv(e, w)  h = Relu(f)
k = GlobalAveragePool(h)  l = Flatten(k)  y = Gemm(l, m, c) }"""
LAYERS = {"p": "u", "r": "v", "d": "s", "f": "w", "y": "m"}


def build(seed: int = 0) -> onnx.ModelProto:
    rng, proto = np.random.default_rng(seed), parse(TEXT)
    for value in list(proto.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        size = np.sqrt(shape[0] if len(shape) == 2 else np.prod(shape[1:]))
        data = (rng.standard_normal(shape) * rng.exponential(1.0, shape) / size).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(data, value.name))
    del proto.graph.input[1:]
    bias = proto.graph.initializer[-1]  # so that no class always wins
    centred = numpy_helper.to_array(bias) - compute(proto, images(100, 3))[0].mean(axis=0)
    bias.CopyFrom(numpy_helper.from_array(centred, bias.name))
    return proto


def images(count: int, seed: int) -> dict[str, np.ndarray]:
    """Smooth images, whose neighbouring pixels say much the same."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 5, 5)).repeat(2, axis=2).repeat(2, axis=3)
    return {"x": (coarse + 0.1 * rng.standard_normal(coarse.shape)).astype(np.float32)}


def pruned(proto: onnx.ModelProto, sparsity: float | str, **options: Any) -> graphopt.Result:
    given = {"measure": False, "threads": 1, "data": images(160, 1), **options}
    return graphopt.optimize(proto, sparsity=sparsity, **given)


def weights_of(result: graphopt.Result) -> dict[str, np.ndarray]:
    found = {one.name: numpy_helper.to_array(one) for one in serialized(result.model).graph.initializer}
    return {name: found[weight] for name, weight in LAYERS.items()}


def error(proto: onnx.ModelProto, result: graphopt.Result) -> float:
    """Noise beside what the outputs vary, on images that nothing was fitted to."""
    feeds = images(200, 2)
    expected, found = (compute(one, feeds)[0] for one in (proto, serialized(result.model)))
    return float(np.square(found - expected).sum() / np.square(expected - expected.mean(0)).sum())


def rows(result: graphopt.Result) -> dict[str, PrunedLayer]:
    return {row.name: row for row in result.report.pruned}


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_share_that_was_asked_for(share: float) -> None:
    proto = build()
    result = pruned(proto, share)
    zeros = {name: (weight == 0).sum() for name, weight in weights_of(result).items()}
    total = sum(weight.size for weight in weights_of(result).values())
    assert sum(zeros.values()) / total == pytest.approx(share, abs=0.01)
    for name, row in rows(result).items():
        left = weights_of(result)[name].size - zeros[name]
        assert row.kept in ("", f"{left:,} of {weights_of(result)[name].size:,} weights")
        assert row.kept or row.reason
    densities = [1 - zeros[name] / weights_of(result)[name].size for name in LAYERS]
    assert max(densities) > min(densities) + 0.1  # not the same everywhere
    told = "\n".join(result.report.notes)
    assert "gzip" in told and "--channels" in told


@pytest.mark.parametrize("seed", range(2))
def test_what_is_left_makes_up_for_what_went(seed: int) -> None:
    proto = build(seed)
    fitted = error(proto, pruned(proto, 0.6))
    assert fitted < 0.5 * error(proto, pruned(proto, 0.6, refit=False))
    assert fitted < 0.5 * error(proto, pruned(proto, 0.6, select="l1", refit=False))


def test_two_of_four_along_channels() -> None:
    result = pruned(build(), "2:4")
    found = weights_of(result)
    for name in ("r", "f"):
        channels_last = np.moveaxis(found[name], 1, -1)
        groups = channels_last.reshape(-1, 4)
        assert ((groups != 0).sum(axis=1) <= 2).all(), name
        assert (found[name] != 0).mean() == pytest.approx(0.5, abs=0.01)
    for name in ("p", "d", "y"):
        assert (found[name] != 0).all(), name
        assert rows(result)[name].reason
    assert "no multiple of 4" in rows(result)["d"].reason
    assert "first and the last" in rows(result)["p"].reason


def test_without_data_the_smallest_weights_go() -> None:
    proto = build()
    result = pruned(proto, 0.5, data=None)
    before = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    for name, weight in weights_of(result).items():
        kept, old = weight != 0, before[LAYERS[name]]
        np.testing.assert_array_equal(weight[kept], old[kept])
        assert kept.all() or np.abs(old[kept]).min() >= np.abs(old[~kept]).max()
    assert any("without data" in note for note in result.report.notes)


def test_zeros_survive_the_passes_and_other_stages() -> None:
    sparse = pruned(build(), 0.7)
    again = graphopt.optimize(serialized(sparse.model), measure=False, threads=1)
    half = pruned(build(), 0.7, store="fp16")
    for name, weight in weights_of(sparse).items():
        np.testing.assert_array_equal(weights_of(again)[name], weight)
    stored = [numpy_helper.to_array(one) for one in serialized(half.model).graph.initializer]
    assert sum((one == 0).sum() for one in stored) >= 0.69 * sum(w.size for w in weights_of(sparse).values())


def test_a_budget_bounds_the_share() -> None:
    proto = build()
    result = pruned(proto, 0.95, max_drop="2%")
    accuracy = result.report.accuracy
    assert accuracy is not None
    zeros = sum((weight == 0).sum() for weight in weights_of(result).values())
    total = sum(weight.size for weight in weights_of(result).values())
    assert accuracy.achieved
    assert 0 < zeros / total < 0.94


def test_kept_layers_stay_as_they_were() -> None:
    proto = build()
    proto.graph.node[2].name = "important"
    result = pruned(proto, 0.5, keep=["important"])
    assert (weights_of(result)["r"] != 0).all()
    assert "--keep" in rows(result)["r"].reason


def test_of_other_weights_it_is_said_that_they_stay() -> None:
    text = """g (int64[n] x, float[64,32] t, float[32,10] m) => (float[n,10] y) {
    a = Gather(t, x)  y = MatMul(a, m) }"""
    rng, proto = np.random.default_rng(0), parse(text)
    for value in list(proto.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        data = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(data, value.name))
    del proto.graph.input[1:]
    result = pruned(proto, 0.5, data={"x": rng.integers(0, 64, 40)})
    assert rows(result)["a"].reason == "a Gather is not made sparse"
    assert rows(result)["y"].kept == "160 of 320 weights"
