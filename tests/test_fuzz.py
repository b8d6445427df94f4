"""The fuzzer finds nothing in the passes, would find a wrong one, and shrinks what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import onnx
import pytest

import graphopt
from graphopt.pipeline import Pipeline
from graphopt.rewrite import any_, op
from graphopt.runtime.worker import Worker
from tests.support import parse
from tools.fuzz.__main__ import main
from tools.fuzz.check import check
from tools.fuzz.generate import generate
from tools.fuzz.reduce import reduced

COUNT = 48


@graphopt.rule(op("Relu", any_("x")))
def relu_is_identity(match):
    """Wrong where x is negative."""
    return match["x"]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(memory_limit=4 << 30, time_limit=30) as worker:
        yield worker


@pytest.mark.parametrize("first", range(0, COUNT, 12))
def test_random_models_keep_what_is_promised(first: int, worker: Worker) -> None:
    failures = {seed: check(generate(seed, worker), worker) for seed in range(first, first + 12)}
    assert {seed: str(failure) for seed, failure in failures.items() if failure} == {}


def test_a_seed_always_gives_the_same_model(worker: Worker) -> None:
    assert generate(7, worker) == generate(7, worker)


def test_a_wrong_rewrite_is_found_and_the_model_shrinks_to_it(worker: Worker) -> None:
    model = parse("""g (float[N,4] x, float[N,4] z) => (float[N,4] y, float[N,4] w) {
        a = Neg(x)
        b = Relu(a)
        c = Add(b, z)
        y = Sigmoid(c)
        w = Tanh(z)
    }""")
    found = partial(check, worker=worker, pipeline=Pipeline([relu_is_identity]))
    failure = found(model)
    assert failure is not None and failure.kind == "differs"
    small = reduced(model, lambda smaller: found(smaller) is not None)
    assert [node.op_type for node in small.graph.node] == ["Neg", "Relu"]
    assert len(small.graph.input) == len(small.graph.output) == 1


def test_a_growing_file_is_found(worker: Worker) -> None:
    @graphopt.rule(op("Neg", any_("x")))
    def longer(match):
        """x ↦ 0 - x in a roundabout way."""
        result = match["x"]
        for _ in range(12):
            result = match.op("Identity", [result])
        return match.op("Sub", [match.op("Sub", [result, result]), result])

    failure = check(parse("g (float[4] x) => (float[4] y) { y = Neg(x) }"), worker, Pipeline([longer]))
    assert failure is not None and failure.kind == "growth"


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    assert main(["--seed", "3", "--count", "1"]) == 0
    assert capsys.readouterr().out == "0 of 1 models fail\n"
    path = tmp_path / "fine.onnx"
    onnx.save(parse("g (float[4] x) => (float[4] y) { y = Neg(x) }"), path)
    assert main(["reduce", str(path)]) == 0
    assert "does not fail" in capsys.readouterr().out
