"""Ranges of activations: each method finds what it claims, and ``auto`` what costs the readers least."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.activations import Collector, Request
from graphopt.calibration import Calibration
from graphopt.errors import UsageError
from graphopt.model import Model
from graphopt.runtime.accumulators import Histogram
from graphopt.runtime.grid_errors import GridErrors
from graphopt_passes.quantize.calibrate import METHODS, find_ranges
from graphopt_passes.quantize.consumers import moments_of, readings
from graphopt_passes.quantize.known_ranges import known_bounds
from graphopt_passes.quantize.ranges import (
    Form,
    Range,
    candidates,
    kl,
    minmax,
    mse,
    percentile,
    squared_error,
    steps,
)
from tests.support import compute, parse

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
FORMS = [Form(), Form(signed=True), Form(signed=True, symmetric=True), Form(bits=7)]
DRAWS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "rectified": lambda rng, n: np.maximum(rng.standard_normal(n), 0),
    "negative": lambda rng, n: -rng.exponential(size=n),
    "skewed": lambda rng, n: np.where(
        rng.random(n) < 0.5, rng.standard_normal(n) * 0.05 - 0.2, rng.gamma(2, size=n)
    ),
    "heavy tails": lambda rng, n: rng.standard_t(3, n),
    "uniform": lambda rng, n: rng.uniform(-1, 3, n),
    "laplace": lambda rng, n: rng.laplace(size=n),
}
DRAWN = pytest.mark.parametrize("draw", DRAWS)
FORMED = pytest.mark.parametrize("form", FORMS, ids=str)


def _drawn(draw, n=200_000, seed=0, scale=1.0):
    x = (DRAWS[draw](np.random.default_rng(seed), n) * scale).astype(np.float32)
    bins = Histogram().start()
    bins.add(x)
    return x, bins


def _error(x, found, form):
    return float(np.square(form.grid(found.low, found.high).round(x) - x, dtype=np.float64).sum())


@DRAWN
@FORMED
@pytest.mark.parametrize("clip", [1.0, 0.5, 0.1])
def test_error_on_a_histogram_is_that_of_the_numbers(draw, form, clip):
    x, bins = _drawn(draw)
    grid = form.grid(bins.low * clip, bins.high * clip)
    nonzero = x[x != 0]  # zero lies on every grid
    expected = np.square(grid.round(nonzero) - nonzero, dtype=np.float64).sum()
    np.testing.assert_allclose(squared_error(bins, grid), expected, rtol=0.03)


@DRAWN
@FORMED
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e20])
def test_mse_is_the_best_clip(draw, form, scale):
    """No other clip of both sides is better by more than the width of a step of the search."""
    x, bins = _drawn(draw, 50_000, scale=scale)
    found = mse(bins, form)
    clips = np.geomspace(1, 0.05, 25)
    trials = [Range(bins.low * a, bins.high * b, "") for a in clips for b in clips]
    if form.symmetric:
        trials = [Range(bins.low * a, bins.high * a, "") for a in clips]
    best = min(squared_error(bins, form.grid(trial.low, trial.high)) for trial in trials)
    assert squared_error(bins, form.grid(found.low, found.high)) <= 1.02 * best
    assert _error(x, found, form) <= 1.02 * _error(x, minmax(bins), form)


def test_mse_of_a_normal_distribution():
    """The optimum for 8 bits is at 3.92 standard deviations (Banner et al. 2019, table of ACIQ)."""
    _, bins = _drawn("normal", 2_000_000)
    found = mse(bins, Form(signed=True, symmetric=True))
    assert abs(max(-found.low, found.high) - 3.92) < 0.25


@DRAWN
@pytest.mark.parametrize("percent", [90, 99])
def test_percentile_is_that_of_numpy(draw, percent):
    x, bins = _drawn(draw)
    found = percentile(bins, percent)
    cut = (100 - percent) / (2 if x.min() < 0 < x.max() else 1)
    low, high = np.percentile(x, [cut, 100 - cut])
    np.testing.assert_allclose([found.low, found.high], [min(low, 0), max(high, 0)], atol=3 * bins.width)


@DRAWN
@pytest.mark.parametrize("percent", [90, 99, 99.99])
def test_percentile_leaves_its_share_outside(draw, percent):
    x, bins = _drawn(draw)
    found = percentile(bins, percent)
    outside = np.mean((x < found.low) | (x > found.high))
    assert abs(outside - (1 - percent / 100)) <= bins.counts.max() / x.size + 2 / x.size
    assert bins.low <= found.low <= 0 <= found.high <= bins.high


@FORMED
def test_kl_drops_outliers_and_keeps_the_rest(form):
    x, bins = _drawn("normal")
    whole = kl(bins, form)
    assert whole.high > 2.5 and whole.low < -2.5
    far = Histogram().start()
    far.add(np.append(x, np.float32(60)))
    assert 2.5 < kl(far, form).high < 30
    flat = Histogram().start()
    flat.add(np.linspace(0, 1, 200_000, dtype=np.float32))
    assert kl(flat, Form()).high > 0.95


@pytest.mark.parametrize("method", [minmax, mse, kl, lambda bins: percentile(bins, 99.99)])
def test_degenerate_tensors(method):
    bins = Histogram().start()
    bins.add(np.zeros(10, np.float32))
    found = method(bins)
    assert (found.low, found.high) == (0, 0)
    bins.add(np.full(10, 2.5, np.float32))
    found = method(bins)
    assert found.low == 0 and 2.4 < found.high <= 2.5


@given(st.integers(0, 10**6), st.sampled_from(sorted(DRAWS)), st.sampled_from(FORMS))
@SETTINGS
def test_candidates_differ_and_lie_within(seed, draw, form):
    _, bins = _drawn(draw, 2_000, seed)
    found = candidates(bins, form)
    assert found[0] == minmax(bins)
    grids = [form.grid(r.low, r.high) for r in found]
    assert len(set(grids)) == len(grids)
    assert all(bins.low <= r.low <= 0 <= r.high <= bins.high for r in found)


@FORMED
def test_steps_are_the_grid(form):
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    for low, high in ((-1, 7), (0, 3), (-5, 0), (-2, 2)):
        grid = form.grid(low, high)
        np.testing.assert_array_equal(steps(grid).round(x), grid.round(x))


@pytest.mark.parametrize(
    ("node", "bounds"),
    [
        ("Softmax(x)", (0, 1)),
        ("Sigmoid(x)", (0, 1)),
        ("HardSigmoid(x)", (0, 1)),
        ("Tanh(x)", (-1, 1)),
        ("Relu(x)", (0, None)),
        ("Clip(x, lo, hi)", (-3, 6)),
        ("Clip(x, lo)", (-3, None)),
        ("Clip(x, , hi)", (None, 6)),
        ("Clip(x, t, hi)", (None, 6)),
        ("Elu<alpha = 0.5>(x)", (-0.5, None)),
        ("Neg(x)", (None, None)),
        ("Relu(x)  y = Transpose(y0)", (0, None)),
        ("Neg(x)  y = Transpose(y0)", (None, None)),
    ],
)
def test_known_bounds(node, bounds):
    text = node if "y = " in node else f"{node}  y = Identity(y0)"
    proto = parse(
        f"g (float[4,4] x, float t) => (float[4,4] y) <float lo = {{-3}}, float hi = {{6}}> {{ y0 = {text} }}"
    )
    model = Model.of(proto)
    assert known_bounds(model.ir.graph.outputs[0]) == bounds
    low, high = bounds
    y = compute(
        proto, {"x": np.linspace(-50, 50, 16, dtype=np.float32).reshape(4, 4), "t": np.array(-9, np.float32)}
    )[0]
    assert (low is None or y.min() >= low) and (high is None or y.max() <= high)


LAYERS = [
    ("Conv<group=2>", (6, 2, 3, 1), (2, 4, 5, 6)),
    ("Conv", (5, 4, 1, 1), (2, 4, 5, 6)),
    ("MatMul", (4, 7), (3, 2, 4)),
    ("MatMul", (3, 4, 7), (3, 2, 4)),
    ("Gemm<transB=1>", (7, 4), (5, 4)),
    ("Gemm<transA=1>", (4, 7), (4, 5)),
]


def _layer(op, w_shape, x_shape):
    dims = [",".join(map(str, shape)) for shape in (x_shape, w_shape)]
    proto = parse(f"g (float[{dims[0]}] x, float[{dims[1]}] w) => (float[a,b] y) {{ y = {op}(x, w) }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    del proto.graph.input[1]
    w = np.random.default_rng(3).standard_normal(w_shape).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return proto


@pytest.mark.parametrize(("op", "w_shape", "x_shape"), LAYERS)
def test_a_reading_predicts_the_output_error(op, w_shape, x_shape):
    """The output's energy when one channel holds a single 1 somewhere in the middle: Σw² of that channel."""
    proto = _layer(op, w_shape, x_shape)
    (reading,) = readings(Model.of(proto).ir.graph.inputs[0])
    for channel in range(4):
        x = np.zeros(x_shape, np.float32)
        where: list[int] = [size // 2 for size in x_shape]
        where[0] = 0
        where[reading.axis] = channel
        x[tuple(where)] = 1
        energy = np.square(compute(proto, {"x": x})[0], dtype=np.float64).sum()
        copies = 3 if len(w_shape) == 3 else 1  # each matrix of a stack has another row of inputs
        if copies == 1:
            np.testing.assert_allclose(energy, reading.energy[channel], rtol=1e-5)
        else:
            assert energy < reading.energy[channel]


@pytest.mark.parametrize(("op", "w_shape", "x_shape"), [layer for layer in LAYERS if len(layer[1]) != 3])
def test_moments_of_a_layer_give_its_output(op, w_shape, x_shape):
    proto = _layer(op, w_shape, x_shape)
    model = Model.of(proto)
    (node,) = model.ir.graph
    x = np.random.default_rng(4).standard_normal(x_shape).astype(np.float32)
    gram = moments_of(node).start()
    gram.add(x)
    w = numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float64)
    groups = len(gram.products)
    rows = (w if op.startswith("Conv") or "transB" in op else w.T).reshape(groups, -1, gram.products.shape[1])
    energy = np.einsum("gmk,gkl,gml->", rows, gram.products, rows)
    np.testing.assert_allclose(
        energy, np.square(compute(proto, {"x": x})[0], dtype=np.float64).sum(), rtol=1e-5
    )


def test_no_layer_has_no_moments():
    model = Model.of(
        parse("g (float[2,2] a, float[2,2] b) => (float[2,2] y) { c = MatMul(a, b)  y = Relu(c) }")
    )
    assert [moments_of(node) for node in model.ir.graph] == [None, None]
    assert readings(model.ir.graph.inputs[0]) == []


def _matmul(weight):
    proto = parse("g (float[n,4] x, float[4,8] w) => (float[n,8] y) { y = MatMul(x, w) }")
    del proto.graph.input[1]
    proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    return proto


def _with_spikes(count=8):
    """Channel 3 has rare spikes of 100 times the others' size."""
    rng = np.random.default_rng(5)
    samples = []
    for _ in range(count):
        x = rng.standard_normal((500, 4))
        x[rng.random(500) < 0.004, 3] *= 100
        samples.append({"x": x.astype(np.float32)})
    return samples


@pytest.mark.parametrize(("factor", "keeps"), [(1e-4, False), (100.0, True)])
def test_auto_follows_the_weights_of_the_reader(worker, factor, keeps):
    """Spikes are clipped where their channel hardly counts, and kept where it counts most."""
    weight = np.random.default_rng(6).standard_normal((4, 8)) * np.array([1, 1, 1, factor])[:, None]
    model, samples = Model.of(_matmul(weight)), _with_spikes()
    gather = Calibration(model, samples, Collector(worker, threads=1)).gather
    found = find_ranges(model, {"x": Form()}, gather).found["x"]
    largest = max(float(np.abs(sample["x"]).max()) for sample in samples)
    assert (max(-found.low, found.high) > 0.5 * largest) == keeps


@pytest.mark.parametrize("form", FORMS[:3], ids=str)
@pytest.mark.parametrize("factor", [1e-4, 1.0, 100.0])
def test_auto_is_the_best_for_the_output(worker, form, factor):
    """ONNX Runtime's own outputs on rounded inputs: no method beats ``auto`` by more than its subsampling."""
    weight = np.random.default_rng(7).standard_normal((4, 8)) * np.array([1, 1, 1, factor])[:, None]
    proto, samples = _matmul(weight), _with_spikes()
    model = Model.of(proto)
    gather = Calibration(model, samples, Collector(worker, threads=1)).gather
    errors = {}
    for method in ("auto", *METHODS):
        found = find_ranges(model, {"x": form}, gather, method).found["x"]
        grid = form.grid(found.low, found.high)
        outputs = [
            [compute(proto, {"x": x})[0].astype(np.float64) for x in (sample["x"], grid.round(sample["x"]))]
            for sample in samples
        ]
        errors[method] = sum(np.square(a - b).sum() for a, b in outputs)
    assert errors["auto"] <= 1.05 * min(errors.values())


def test_known_ranges_and_reasons(worker):
    proto = parse("""g (float[n,4] x) => (float[n,4] s, float[n,4] r, float[n,4] l) {
        s = Softmax(x)  r = Relu(x)  l = Log(x) }""")
    model = Model.of(proto)
    samples = [{"x": np.random.default_rng(8).standard_normal((50, 4)).astype(np.float32)}]
    gather = Calibration(model, samples, Collector(worker)).gather
    for method in ("auto", *METHODS):
        ranges = find_ranges(model, dict.fromkeys("srl", Form()), gather, method)
        assert ranges.found["s"] == Range(0.0, 1.0, "known")
        assert ranges.found["r"].low == 0.0 < ranges.found["r"].high <= samples[0]["x"].max()
        assert ranges.absent == {"l": "sample 0: the tensor holds NaN or infinity"}


def test_unknown_method(worker):
    model = Model.of(_matmul(np.ones((4, 8))))
    with pytest.raises(UsageError, match="no such way to choose ranges: 'best'"):
        find_ranges(model, {"x": Form()}, lambda requests: pytest.fail("asked"), "best")


def test_trials_ask_for_what_differs_only(worker):
    """Values without a reader, and those on which all methods agree, take no second pass."""
    asked = []
    model = Model.of(_matmul(np.ones((4, 8))))
    calibration = Calibration(model, _with_spikes(2), Collector(worker))

    def gather(requests):
        requests = list(requests)
        asked.append(requests)
        return calibration.gather(requests)

    find_ranges(model, {"x": Form(), "y": Form()}, gather)
    assert asked[0] == [Request("x", Histogram()), Request("y", Histogram())]
    assert [(r.value, type(r.kind)) for r in asked[1]] == [("x", GridErrors)]
    assert asked[1][0].kind.axis == -1
