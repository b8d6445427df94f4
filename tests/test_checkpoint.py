"""Runs that go on where earlier ones ended give what runs from the start give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.activations import Collector, Request
from graphopt.checkpoint import Checkpoint
from graphopt.model import Model
from graphopt.runtime.means import Mean
from graphopt.runtime.worker import Worker
from tests.support import compute, parse

TEXT = """g (float[n,4] x, bool flag, float[4,4] a, float[4,4] b, float[4,4] c) => (float[n,4] y) {
k = Constant<value_float = 2.0>()
p = MatMul(x, a)  q = Relu(p)  r = Mul(q, k)
s = If (flag) < then_branch = yes () => (float[n,4] t) { t = Neg(q) },
                else_branch = no () => (float[n,4] u) { u = Abs(q) } >
v = MatMul(r, b)  d, e = Split<axis = 1>(v)  f = Concat<axis = 1>(e, d)
w = Add(f, s)  z = MatMul(w, c)  y = Add(z, r) }"""
LAYERS = ["p", "v", "z"]
SOURCES = ["x", "r", "w"]


@pytest.fixture(name="worker", scope="module")
def _worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


def build(changed: Mapping[str, float]) -> onnx.ModelProto:
    """The model; the weights of these layers are multiplied."""
    rng, proto = np.random.default_rng(0), parse(TEXT)
    for name, layer in zip("abc", LAYERS, strict=True):
        data = rng.standard_normal((4, 4)) * changed.get(layer, 1.0)
        proto.graph.initializer.append(numpy_helper.from_array(data.astype(np.float32), name))
    del proto.graph.input[2:]
    return proto


def samples(count: int = 6) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [
        {"x": rng.standard_normal((1 + i % 3, 4)).astype(np.float32), "flag": np.array(i % 2 > 0)}
        for i in range(count)
    ]


def means(how: Collector, model: Model, feeds: Sequence[Mapping[str, Any]], name: str) -> Any:
    found = how.collect(model, [Request(name, Mean(-1))], feeds)
    return found.get(name, Mean(-1)).mean


def expected(proto: onnx.ModelProto, name: str) -> Any:
    """The mean of a value over all rows of the samples."""
    rows = np.concatenate([compute(wider(proto, name), feeds)[-1] for feeds in samples()])
    return rows.mean(0, dtype=np.float64)


EACH = ((0,), (1,), (2,))


def walked(how: Collector, checkpoint: Checkpoint, steps: Sequence[Sequence[int]] = EACH) -> Iterator[Model]:
    """The models of steps in which some layers are watched, and then changed; what is watched is checked."""
    changed: dict[str, float] = {}
    for step in steps:
        model, proto = Model.of(build(changed)), build(changed)
        taps = [SOURCES[at] for at in step]
        feeds = checkpoint.advance(model, taps, SOURCES[step[0] :], LAYERS[step[0] :])
        for name in taps:
            np.testing.assert_allclose(
                means(how, model, feeds, name), expected(proto, name), rtol=0, atol=1e-7
            )
        yield model
        changed |= dict.fromkeys([LAYERS[at] for at in step], 0.5)


def inputs(model: Model) -> list[str | None]:
    return [value.name for value in model.ir.graph.inputs]


def test_what_is_watched_is_as_in_runs_from_the_start(worker: Worker) -> None:
    how = Collector(worker)
    with Checkpoint(how, samples()) as checkpoint:
        begun = [inputs(model)[2:] for model in walked(how, checkpoint)]
    assert begun == [[], ["q", "r"], ["q", "r"]]


@pytest.mark.parametrize("steps", [[(0, 1), (2,)], [(0,), (1, 2)], [(0, 1, 2)]], ids=str)
def test_layers_that_read_from_each_other_may_go_together(
    steps: Sequence[Sequence[int]], worker: Worker
) -> None:
    """What the later ones read changes with the earlier ones, and is not kept."""
    with Checkpoint(how := Collector(worker), samples()) as checkpoint:
        assert len(list(walked(how, checkpoint, steps))) == len(steps)


def test_its_files_do_not_pile_up(worker: Worker) -> None:
    def files() -> set[Path]:
        return {path for path in worker.folder.rglob("*") if path.is_file() and "pool" not in path.parts}

    how, before = Collector(worker), files()
    big = [{**one, "x": np.repeat(one["x"], 2000, axis=0)} for one in samples()]
    with Checkpoint(how, big) as checkpoint:
        sizes = []
        for layer in range(3):
            model = Model.of(build({}))
            checkpoint.advance(model, [SOURCES[layer]], SOURCES[layer:], LAYERS[layer:])
            sizes.append(len(files() - before))
    assert sizes == [0, 1, 1]
    assert files() == before


def test_without_room_runs_start_from_where_there_was_some(worker: Worker) -> None:
    how = Collector(worker, memory=0)
    with Checkpoint(how, samples()) as checkpoint:
        assert [inputs(model)[2:] for model in walked(how, checkpoint)] == [[], [], []]


OTHERS = {
    "infinity": ("Log(k)", "Exp(o)"),
    "a sequence": ("SequenceConstruct(p)", "ConcatFromSequence<axis = 0>(o)"),
    "an optional": ("Optional(p)", "OptionalGetElement(o)"),
    "bfloat16": ("Cast<to = 16>(p)", "Cast<to = 1>(o)"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_value_may_lie_between(kind: str, worker: Worker) -> None:
    """Infinities may not be fed by users, and what is no plain tensor cannot be kept."""
    make, read = OTHERS[kind]
    proto = parse(f"""g (float[n,4] x, float[4,4] a) => (float[n,4] y) {{
    p = Abs(x)  k = Sub(p, p)  o = {make}  q = {read}
    z = MatMul(p, a)  t = {read}  r = Add(z, t)  y = MatMul(r, a) }}""")
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "a"))
    del proto.graph.input[1:]
    data = [{"x": one["x"]} for one in samples()]
    how, steps = Collector(worker), [(["q"], ["q", "r"], ["z", "y"]), (["r"], ["r"], ["y"])]
    with Checkpoint(how, data) as checkpoint:
        for taps, later, changing in steps:
            model = Model.of(proto)
            feeds = checkpoint.advance(model, taps, later, changing)
            assert inputs(model) == ["x", "p", *(["o"] if kind == "infinity" else [])]
            rows = [compute(wider(proto, taps[0]), one)[-1] for one in data]
            expected = np.concatenate(rows).mean(0, dtype=np.float64)
            np.testing.assert_allclose(means(how, model, feeds, taps[0]), expected, rtol=0, atol=1e-7)


def wider(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with another output."""
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    found.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    return found


def test_without_samples_there_is_nothing_to_run(worker: Worker) -> None:
    with Checkpoint(Collector(worker), []) as checkpoint:
        assert checkpoint.advance(Model.of(build({})), ["r"], ["r", "w"], ["v", "z"]) == []
