"""Statistics of activations: those of ONNX Runtime's own values, from every graph, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from graphopt.activations import Collector, Request
from graphopt.errors import DataError, UnsupportedModelError, UsageError, WorkerError
from graphopt.model import Model
from graphopt.runtime.accumulators import Extent, Histogram
from graphopt.runtime.means import Mean
from graphopt.runtime.moments import Moments
from graphopt.runtime.worker import Worker
from graphopt.tapping import Tapper
from tests.support import compute, parse

CHAIN = """g (float[n,4,h,w] x, float[5,4,3,3] weight) => (float[n,5,a,b] y) {
    c = Conv<pads=[1,1,1,1]>(x, weight)
    r = Relu(c)
    s = Add(r, r)
    y = Sigmoid(s)
}"""

NESTED = """g (float[n,4] x, bool c, int64 trips) => (float[n,4] y) <float[1] one = {1}> {
    z = If (c) <
        then_branch = yes () => (float[n,4] ty) { ta = Add(x, one)  ty = Mul(ta, ta) },
        else_branch = no () => (float[n,4] ey) { ey = Neg(x) }>
    w, scans = Loop (trips, , z) <body = b (int64 i, bool go, float[n,4] s)
            => (bool go, float[n,4] t, float[n,4] u) {
        zero = Constant<value_int: int = 0>()
        two = Constant<value_int: int = 2>()
        m = Mod(i, two)
        even = Equal(m, zero)
        inner = If (even) <
            then_branch = yes2 () => (float[n,4] t2) { t1 = Add(s, one)  t2 = Mul(t1, one) },
            else_branch = no2 () => (float[n,4] e2) { e2 = Neg(s) }>
        t = Add(inner, one)
        u = Identity(t)
    }>
    y = Add(w, one)
}"""

SCAN = """g (float[3] start, float[t,3] xs) => (float[3] last, float[3,t] ys) {
    last, ys = Scan <num_scan_inputs = 1, scan_output_axes = [1],
            body = b (float[3] state, float[3] xi) => (float[3] next, float[3] yi) {
        sum = Add(state, xi)
        next = Tanh(sum)
        yi = Neg(next)
    }> (start, xs)
}"""


@pytest.fixture(scope="module")
def worker():
    with Worker(memory_limit=4 << 30, time_limit=60) as worker:
        yield worker


@pytest.fixture(scope="module")
def chain():
    proto = parse(CHAIN)
    weight = np.random.default_rng(0).standard_normal((5, 4, 3, 3)).astype(np.float32)
    del proto.graph.input[1]
    proto.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    return proto


def _images(count=4, size=6, seed=0):
    rng = np.random.default_rng(seed)
    draws = [rng.standard_normal, lambda shape: rng.standard_t(2, shape), rng.random]
    return [{"x": draws[i % 3]((1 + i % 2, 4, size + i, size)).astype(np.float32)} for i in range(count)]


def _values(proto, samples, names):
    """The named values of the main graph, from ONNX Runtime with nothing optimized; one per sample."""
    exposed = type(proto)()
    exposed.CopyFrom(proto)
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    runs = [compute(exposed, sample) for sample in samples]
    return {name: [run[i] for run in runs] for i, name in enumerate(names)}


def _assert_extents(found, expected):
    """The extents per channel along axis 1 of the arrays that are expected by name."""
    for name, arrays in expected.items():
        result = found.get(name, Extent(1))
        stacks = [np.moveaxis(a, 1, 0).reshape(a.shape[1], -1) for a in arrays]
        np.testing.assert_allclose(
            result.low, np.min([s.min(axis=1) for s in stacks], axis=0), rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(
            result.high, np.max([s.max(axis=1) for s in stacks], axis=0), rtol=1e-5, atol=1e-5
        )
        assert result.count == sum(a.size for a in arrays)


@pytest.mark.parametrize("size", [4, 9])
def test_values_are_those_of_onnx_runtime(chain, worker, size):
    samples, names = _images(6, size), ["x", "c", "r", "s", "y"]
    requests = [Request(name, kind) for name in names for kind in (Extent(1), Mean(1), Histogram(256))]
    found = Collector(worker, threads=1).collect(Model.of(chain), requests, samples)
    assert (found.samples, found.absent) == (6, {})
    expected = _values(chain, samples, names)
    _assert_extents(found, expected)
    for name, arrays in expected.items():
        mean = sum(a.sum(axis=(0, 2, 3), dtype=np.float64) for a in arrays) / sum(
            a[:, 0].size for a in arrays
        )
        np.testing.assert_allclose(found.get(name, Mean(1)).mean, mean, rtol=1e-4, atol=1e-5)
        bins = found.get(name, Histogram(256))
        assert bins.counts.sum() + bins.zeros == sum(a.size for a in arrays)
        assert abs(bins.zeros - sum((a == 0).sum() for a in arrays)) <= 1


def _nested(x, c, trips):
    """What the values of NESTED are, with numpy: a list of arrays per name."""
    seen = {name: [] for name in ("ta", "ty", "ey", "t1", "t2", "e2", "inner", "s", "t", "u")}
    if c:
        seen["ta"].append(x + 1)
        z = (x + 1) ** 2
        seen["ty"].append(z)
    else:
        z = -x
        seen["ey"].append(z)
    for i in range(int(trips)):
        seen["s"].append(z)
        if i % 2 == 0:
            seen["t1"].append(z + 1)
            seen["t2"].append(z + 1)
        else:
            seen["e2"].append(-z)
        inner = z + 1 if i % 2 == 0 else -z
        seen["inner"].append(inner)
        z = inner + 1
        seen["t"].append(z)
        seen["u"].append(z)
    return seen


@pytest.mark.parametrize("conditions", [(True, False, True), (True, True, True)])
def test_values_of_nested_subgraphs(worker, conditions):
    rng = np.random.default_rng(1)
    samples = [
        {"x": rng.standard_normal((2 + i, 4)).astype(np.float32), "c": np.array(c), "trips": np.array(3 - i)}
        for i, c in enumerate(conditions)
    ]
    runs = [_nested(**sample) for sample in samples]
    expected = {name: [a for run in runs for a in run[name]] for name in runs[0]}
    requests = [Request(name, Extent(1)) for name in expected]
    found = Collector(worker).collect(Model.of(parse(NESTED)), requests, samples)
    reached = {name: arrays for name, arrays in expected.items() if arrays}
    _assert_extents(found, reached)
    assert found.absent == {
        Request(name, Extent(1)): "no sample reached it" for name in expected if name not in reached
    }
    assert ("ey" in reached) == (not all(conditions))


def test_values_of_a_scan(worker):
    rng = np.random.default_rng(2)
    samples = [
        {"start": np.zeros(3, np.float32), "xs": rng.standard_normal((t, 3)).astype(np.float32)}
        for t in (4, 7)
    ]
    sums = []
    for sample in samples:
        state = sample["start"]
        for xi in sample["xs"]:
            sums.append((state + xi)[None])
            state = np.tanh(state + xi)
    requests = [Request("sum", Extent(0)), Request("ys", Extent(0)), Request("sum", Moments(3))]
    found = Collector(worker).collect(Model.of(parse(SCAN)), requests, samples)
    np.testing.assert_allclose(found.get("sum", Extent(0)).low, np.min(sums, axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(
        found.get("ys", Extent(0)).high, np.max(-np.tanh(sums), axis=(0, 1)), rtol=1e-5
    )
    rows = np.concatenate(sums).astype(np.float64)
    np.testing.assert_allclose(found.get("sum", Moments(3)).products[0], rows.T @ rows, rtol=1e-5)


def test_what_cannot_be_watched_says_why(worker):
    proto = parse(
        """g (float[4] x, string[1] text, bool c) => (float[4] y, string[1] kept, float[m] items) {
            f = local.twice(x)
            y = Log(f)
            kept = Identity(text)
            many = SequenceConstruct(x, y)
            items = ConcatFromSequence<axis=0>(many)
        }""",
        functions="""<domain: "local", opset_import: ["" : 17]>
            twice (a) => (b) { inside = Add(a, a) b = Neg(inside) }""",
    )
    names = ["x", "f", "y", "kept", "many", "inside", "nothing"]
    samples = [
        {"x": np.array([-1, -2, -3, i - 4], np.float32), "text": np.array(["a"]), "c": np.array(True)}
        for i in range(5)
    ]
    found = Collector(worker).collect(Model.of(proto), [Request(n, Extent()) for n in names], samples)
    assert {r.value for r in found.found} == {"x", "f"}
    why = {r.value: reason for r, reason in found.absent.items()}
    assert why["y"] == "sample 4: the tensor holds NaN or infinity"
    assert "function" in why["inside"] and "no such value" in why["nothing"] and "strings" in why["kept"]
    assert why["many"] == "it is no tensor"


def test_sibling_branches_with_one_name(worker):
    proto = parse("""g (float[2] x, bool c) => (float[2] y) { y = If (c) <
        then_branch = a () => (float[2] v) { t = Neg(x)  v = Abs(t) },
        else_branch = b () => (float[2] u) { t = Exp(x)  u = Abs(t) }> }""")
    sample = {"x": np.ones(2, np.float32), "c": np.array(True)}
    found = Collector(worker).collect(Model.of(proto), [Request("t", Extent())], [sample])
    assert list(found.absent.values()) == ["several values have this name"]


@pytest.mark.parametrize("memory", [1, 8_000, 1 << 20])
def test_groups_give_the_same_bits(chain, worker, memory):
    kinds = (Extent(1), Mean(1), Histogram(64))
    requests = [Request(name, kind) for name in ("x", "c", "r", "s", "y") for kind in kinds]
    model, samples = Model.of(chain), _images(5)
    # Each value by itself: what is watched may change what ONNX Runtime fuses, so ask for no more at a time.
    parts = list(Collector(worker, memory=memory).stream(model, requests, samples))
    again = list(Collector(worker, memory=memory).stream(model, requests, samples))
    assert len(parts) == {1: 5, 1 << 20: 1}.get(memory, len(parts))
    assert [list(part.found) for part in parts] == [list(part.found) for part in again]
    assert sum(len(part.found) for part in parts) == len(requests)
    for part, other in zip(parts, again, strict=True):
        for request, one in part.found.items():
            for name, value in vars(one).items():
                np.testing.assert_array_equal(value, vars(other.found[request])[name])
    whole = Collector(worker).collect(model, requests, samples)
    for part in parts:
        for request, one in part.found.items():
            assert one.count == whole.found[request].count
            if isinstance(request.kind, Extent):
                np.testing.assert_allclose(one.high, whole.found[request].high, rtol=1e-5, atol=1e-6)


def test_the_budget_bounds_each_group(chain, worker):
    """A group holds more than one value only if their activations fit."""
    requests = [Request(name, Extent()) for name in ("c", "r", "s", "y")]
    size = 5 * 8 * 6 * 4
    samples = [{"x": np.ones((1, 4, 8, 6), np.float32)}]
    for fit in (1, 2, 3, 4):
        parts = list(Collector(worker, memory=fit * size).stream(Model.of(chain), requests, samples))
        assert len(parts) == -(-4 // fit)


def test_the_largest_of_the_first_samples_counts(chain, worker):
    requests = [Request(name, Extent()) for name in ("c", "r", "s", "y")]
    shapes = [(1, 4, 8, 6), (1, 4, 8, 6), (1, 4, 16, 6)]
    samples = [{"x": np.ones(shape, np.float32)} for shape in shapes]
    collector = Collector(worker, memory=2 * 5 * 16 * 6 * 4)
    assert len(list(collector.stream(Model.of(chain), requests, samples))) == 2


def test_only_what_the_taps_need_is_left(chain):
    model = Model.of(chain).clone()
    tapper = Tapper(model.ir)
    tapper.tap("c")
    tapper.finish()
    assert [node.op_type for node in model.ir.graph] == ["Conv"]
    tapper = Tapper(model.ir)
    tapper.tap("x")
    tapper.finish()
    assert not len(model.ir.graph) and not model.ir.graph.initializers


def test_the_model_is_not_changed(chain, worker):
    model = Model.of(parse(NESTED))
    before = model.skeleton().SerializeToString(deterministic=True)
    sample = {"x": np.ones((1, 4), np.float32), "c": np.array(True), "trips": np.array(1)}
    Collector(worker).collect(model, [Request("t1", Extent()), Request("z", Extent())], [sample])
    assert model.skeleton().SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            {"x": np.ones((1, 3, 8, 8), np.float32)},
            r"sample 2: input 'x' has shape 1x3x8x8, the model takes nx4xhxw",
        ),
        ({"x": np.ones((1, 4, 8, 8))}, r"sample 2: input 'x' has type float64"),
        ({}, r"sample 2: input 'x' is missing"),
        ({"x": np.full((1, 4, 8, 8), np.nan, np.float32)}, r"sample 2: input 'x' holds NaN"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(chain, worker, sample, message):
    with pytest.raises(DataError, match=message):
        Collector(worker).collect(Model.of(chain), [Request("c", Extent())], [*_images(2), sample])


def test_a_sample_that_onnx_runtime_refuses_is_named(worker):
    proto = parse("g (float[n] a, float[m] b) => (float[k] y) { y = Add(a, b)  z = Neg(y) }")
    samples = [{"a": np.ones(3, np.float32), "b": np.ones(n, np.float32)} for n in (3, 1, 3, 1, 1, 3, 4)]
    with pytest.raises(DataError, match=r"sample 6 \(a 3, b 4\): ONNX Runtime refuses it: .*Add"):
        Collector(worker).collect(Model.of(proto), [Request("y", Extent())], samples)


def test_samples_must_be_there_and_stay(chain, worker):
    with pytest.raises(DataError, match="no sample"):
        Collector(worker).collect(Model.of(chain), [Request("c", Extent())], [])
    with pytest.raises(UsageError, match="no generator"):
        Collector(worker).collect(Model.of(chain), [Request("c", Extent())], iter(_images()))
    assert Collector(worker).collect(Model.of(chain), [], _images()).found == {}


class _Fussy(Worker):
    """Loads nothing above a level, as ONNX Runtime does with models that one of its optimizers breaks."""

    loads = "basic"
    tried: list[str] = []  # noqa: RUF012

    def open(self, model, target, threads=0):
        self.tried.append(target.level)
        if target.level != self.loads:
            raise WorkerError("an optimizer fails", "failed")
        return super().open(model, target, threads)


def test_less_optimized_sessions_where_others_do_not_load(chain):
    with _Fussy() as worker:
        found = Collector(worker).collect(Model.of(chain), [Request("r", Extent(1))], _images())
        assert worker.tried == ["all", "extended", "basic"] * 2
        _assert_extents(found, _values(chain, _images(), ["r"]))
        worker.loads = "none"
        with pytest.raises(UnsupportedModelError, match="does not load the model: an optimizer fails"):
            Collector(worker).collect(Model.of(chain), [Request("r", Extent(1))], _images())


class _Watched(Worker):
    """Notes for which of its sessions weights are packed."""

    def __init__(self):
        super().__init__()
        self.packed = []

    def open(self, model, target, threads=0):
        self.packed.append(target.prepacks)
        return super().open(model, target, threads)


def test_weights_beyond_the_memory_are_not_packed():
    weight = np.random.default_rng(0).standard_normal((600, 700)).astype(np.float32)
    proto = parse(
        "g (float[n,600] x, float[600,700] w) => (float[n,700] y) { a = MatMul(x, w)  y = Relu(a) }"
    )
    del proto.graph.input[1:]
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    samples = [{"x": np.random.default_rng(1).standard_normal((4, 600)).astype(np.float32)}]
    with _Watched() as watched:
        for memory, packed in ((weight.nbytes, True), (weight.nbytes - 1, False)):
            watched.packed.clear()
            found = Collector(watched, memory=memory).collect(
                Model.of(proto), [Request("a", Extent())], samples
            )
            assert watched.packed == [packed] * len(watched.packed) != []
            extent = found.get("a", Extent())
            expected = (samples[0]["x"] @ weight).max()
            assert float(np.max(extent.high)) == pytest.approx(expected, rel=1e-5)


def test_progress_counts_runs_of_all_groups(chain, worker):
    told = []
    collector = Collector(worker, memory=1, progress=lambda stage, done, total: told.append((done, total)))
    collector.collect(Model.of(chain), [Request("c", Extent()), Request("r", Extent())], _images(3))
    assert told == [(i, 6) for i in range(6)]


class _Many:
    """Samples that are drawn when they are asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        rng = np.random.default_rng(0)
        for _ in range(self.count):
            yield {"x": rng.random((1, 4, 256, 256), np.float32)}


def test_memory_does_not_grow_with_samples(chain):
    peaks = []
    for count in (5, 105):
        with Worker() as worker:
            requests = [Request(name, Histogram()) for name in ("c", "r", "s", "y")]
            Collector(worker, threads=1).collect(Model.of(chain), requests, _Many(count))
            peaks.append(worker.peak_memory())
    # 100 more samples have 500 MB of activations; heaps differ by some 16 MB from run to run.
    assert peaks[1] < peaks[0] + (32 << 20)


def test_shapes_that_the_file_states_of_inner_values_are_dropped() -> None:
    """ONNX Runtime plans memory by them; ddddocr_common states a wrong rank, and could not be watched."""
    proto = parse("g (float[2,3] x) => (float[2,3] y) { a = Neg(x) y = Sin(a) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("a", 1, [6]))
    model = Model.of(proto)
    Tapper(model.ir)
    assert [node.outputs[0].shape for node in model.ir.graph] == [None, None]
    assert model.ir.graph.inputs[0].shape is not None
