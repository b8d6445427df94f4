"""Times of nodes: what a trace says, and whose they are. Nothing depends on the speed of the machine."""

import numpy as np
import pytest

from graphopt import graph as g
from graphopt.model import Model
from graphopt.proof.executed import Executed, named
from graphopt.proof.profile import attribute, profile
from graphopt.runtime.profile import NodeTime, node_times
from graphopt.runtime.values import Tensor
from graphopt.runtime.worker import Worker
from tests.support import parse


@pytest.fixture(scope="module")
def worker():
    with Worker(time_limit=60) as one:
        yield one


def _event(name, op, start, duration, size=0):
    args = {"op_name": op, "output_size": str(size)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": args}


def _run(start, events):
    return [{"cat": "Session", "name": "model_run", "ts": start, "dur": 100, "args": {}}, *events]


def test_a_trace_gives_the_middle_of_the_runs_after_the_first():
    durations = [900, 10, 12, 14, 500]  # allocation, three plain runs, one disturbed
    events = [
        e for i, d in enumerate(durations) for e in _run(1000 * i, [_event("a", "Relu", 1000 * i, d, 8)])
    ]
    [time] = node_times(events)
    assert time == NodeTime("a", "Relu", pytest.approx(13.5e-6), 1, 8)  # (12 + 14) / 2, and half a tick


def test_a_loop_does_not_count_what_its_body_took():
    inner = [_event("body", "Add", 20, 30), _event("body", "Add", 55, 40)]
    after = [_event("next", "Relu", 110, 7)]
    run = _run(0, [*inner, _event("loop", "Loop", 10, 100), *after])
    again = [{**event, "ts": event["ts"] + 1000} for event in run]
    found = {time.name: time for time in node_times(run + again)}
    assert found["loop"].seconds == pytest.approx(30.5e-6)
    assert found["body"].seconds == pytest.approx(71e-6)
    assert found["body"].calls == 2
    assert found["next"].seconds == pytest.approx(7.5e-6)


def _profile(worker, text, feeds, opset=17):
    model = Model.of(parse(text, opset))
    sample = {name: Tensor.of(value) for name, value in feeds.items()}
    return profile(model, sample, worker=worker, threads=1, budget_s=0.02)


IMAGE = {"x": np.random.default_rng(0).standard_normal((1, 16, 12, 12)).astype(np.float32)}
WEIGHT = "{" + ", ".join(str((i * 7 % 11 - 5) / 50) for i in range(16 * 16)) + "}"


def test_fused_blocked_convs_keep_their_own_time(worker):
    found = _profile(
        worker,
        f"""g (float[1,16,12,12] x) => (float[1,16,12,12] y) <float[16,16,1,1] w = {WEIGHT}> {{
            a = Conv(x, w)  b = Relu(a)  c = Conv(b, w)  d = Add(c, b)  e = Relu(d)
            y = Tanh(e) }}""",
        IMAGE,
    )
    assert {"a", "c"} <= set(found.units) <= {"a", "c", "y"}
    assert "x" in found.conversions  # into blocks
    assert found.unattributed == 0


def test_a_transformer_s_fusions_belong_to_what_they_end_with(worker):
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8, 16)).astype(np.float32)}
    ones = "{" + ", ".join(["1"] * 16) + "}"
    found = _profile(
        worker,
        f"""g (float[2,8,16] x) => (float[2,8,16] y)
            <float[16,16] w = {WEIGHT}, float[16] one = {ones}, float two = {{1.41421356}},
             float half = {{0.5}}, float unit = {{1}}> {{
            m = MatMul(x, w)  a = Add(m, one)  s = Add(a, x)  n = LayerNormalization(s, one, one)
            h = MatMul(n, w)  i = Add(h, one)  q = Div(i, two)  e = Erf(q)  f = Add(e, unit)
            p = Mul(i, f)  y = Mul(p, half) }}""",
        feeds,
    )
    assert {"m", "n", "h", "y"} <= set(found.units)
    assert not {"s", "q", "e", "f", "p"} & set(found.units)
    assert found.unattributed == 0


QDQ = f"""g (float[1,16,12,12] x) => (float[1,16,12,12] y)
    <float s = {{0.02}}, uint8 z = {{128}}, uint8 low = {{0}}, int8 zw = {{0}},
     float[16,16,1,1] w = {WEIGHT}> {{
    xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)
    wq = QuantizeLinear(w, s, zw) wd = DequantizeLinear(wq, s, zw)
    a = Conv(xd, wd)  b = Relu(a)
    bq = QuantizeLinear(b, s, low) bd = DequantizeLinear(bq, s, low)
    c = Conv(bd, wd)
    cq = QuantizeLinear(c, s, z)  cd = DequantizeLinear(cq, s, z)
    d = Add(cd, xd)
    dq = QuantizeLinear(d, s, z)  dd = DequantizeLinear(dq, s, z)
    y = Tanh(dd) }}"""


def test_integer_kernels_belong_to_the_nodes_between_q_and_dq(worker):
    found = _profile(worker, QDQ, IMAGE)
    assert set(found.units) == {"a", "c", "d", "y"}
    assert {"x", "d"} <= set(found.conversions) <= {"x", "b", "c", "d"}  # c: turned back to channels first
    assert found.unattributed == 0


def test_what_the_runtime_left_as_it_was_keeps_its_time(worker):
    """Of two equal Convs it runs one; that is no reason to take the Concat behind them for a Conv."""
    found = _profile(
        worker,
        f"""g (float[1,16,12,12] x) => (float[1,32,12,12] y) <float[16,16,1,1] w = {WEIGHT}> {{
            a = Conv(x, w)  b = Relu(a)  c = Conv(x, w)  d = Relu(c)  y = Concat<axis = 1>(b, d) }}""",
        IMAGE,
    )
    assert "y" in found.units
    assert len({"a", "c"} & set(found.units)) == 1
    assert found.unattributed == 0


def test_bodies_of_loops_are_told(worker):
    found = _profile(
        worker,
        """g (float[64] x) => (float[64] y) <int64 n = {5}> {
            y = Loop(n, , x) <body = b (int64 i, bool c, float[64] v) => (bool c2, float[64] w) {
                c2 = Identity(c)  t = Tanh(v)  w = Neg(t) }> }""",
        {"x": np.ones(64, np.float32)},
    )
    assert {"y", "t", "w"} <= set(found.units)
    assert found.unattributed == 0


def test_times_of_unknown_nodes_are_not_lost(worker):
    model = Model.of(parse("g (float[4] x) => (float[4] y) { y = Tanh(x) }"))
    executed = Executed.of(model, worker=worker, threads=1)
    found = attribute(executed, [NodeTime("y", "Tanh", 2.0, 1, 0), NodeTime("other", "Relu", 3.0, 1, 0)])
    assert found.units == {"y": 2.0}
    assert found.unattributed == 3.0
    assert found.seconds == 5.0


def test_nothing_is_left_of_the_dumped_graph(worker):
    model = Model.of(parse("g (float[4] x) => (float[4] y) { y = Tanh(x) }"))
    path = worker.pool.write(named(model))
    dumped = worker.optimized(path, threads=1)
    assert [node.op_type for node in g.nodes(Model.load(dumped).ir)] == ["Tanh"]
    before = set(dumped.parent.parent.iterdir())
    Executed.of(model, worker=worker, threads=1)
    worker.profile(path, {"x": Tensor.of(np.ones(4, np.float32))}, threads=1, budget_s=0)
    assert set(dumped.parent.parent.iterdir()) == before
