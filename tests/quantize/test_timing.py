"""Costs of placements: what profiles saw, and estimates of what they did not."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.proof.profile import Profile
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.partition import cheapest
from graphopt_passes.quantize.placement import Placement
from graphopt_passes.quantize.timing import Timing
from tests.quantize.networks import images, sentences
from tests.support import parse

TEXT = """agraph (float[4,4] x) => (float[4,4] y, float[4,4] b)
<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float[4] v = {1,2,3,4}>
{ a = MatMul(x, w)  b = Add(a, v)  c = Transpose(b)  d = Gemm(c, w)  e = Relu(d)  f = Add(e, c)
  y = Gemm(f, w) }"""
UNITS = {"a": 10e-6, "c": 2e-6, "d": 8e-6, "e": 1e-6, "f": 3e-6, "y": 6e-6}
FLOATS = Profile({**UNITS, "b": 1e-6}, {}, 9e-6)


@pytest.fixture
def placement(worker: Worker) -> Placement:
    return Placement(Model.of(parse(TEXT)), Run(CPU, worker))


def test_parts_cost_what_their_nodes_cost(placement: Placement) -> None:
    timing = Timing(placement, [{}])
    timing.learn([FLOATS], ())
    costs = timing.costs()
    assert set(costs.nodes) == {"a", "c", "d", "f", "y"}
    assert costs.nodes["a"].on_floats == pytest.approx(11 / 40)  # with the Add of its bias
    assert costs.nodes["d"].on_floats == pytest.approx(9 / 40)  # with its Relu
    assert all(choice.on_integers is None for choice in costs.nodes.values())
    assert cheapest(costs).integers == frozenset()  # nobody knows what integers cost


def test_drafts_replace_what_they_saw(placement: Placement) -> None:
    timing = Timing(placement, [{}])
    timing.learn([FLOATS], ())
    draft = Profile({"a": 4e-6, "d": 2e-6, "c": 2e-6, "f": 1e-6, "y": 12e-6}, {"x": 1e-6})
    timing.learn([draft], {"a", "c", "d", "f"})
    nodes = timing.costs().nodes
    assert nodes["a"].on_integers == pytest.approx(4 / 40)
    assert nodes["a"].on_floats == pytest.approx(11 / 40)
    assert nodes["d"].on_integers == pytest.approx(2 / 40)  # its Relu vanished
    assert nodes["y"].on_integers is None
    assert nodes["y"].on_floats == pytest.approx(12 / 40)  # floats beside integers


def test_conversions_that_nobody_saw_cost_by_their_size(placement: Placement) -> None:
    sizes = {"x": 1000.0, "b": 2000.0, "c": 2000.0, "f": 5000.0}
    timing = Timing(placement, [sizes])
    workload = timing.workloads[0]
    guess = workload.conversion("f")
    assert 1e-7 < guess < 1e-4
    timing.learn([FLOATS], ())
    timing.learn([Profile({}, {"x": 2e-6, "b": 8e-6, "c": 6e-6})], {"a"})
    assert workload.conversion("x") == 2e-6
    assert workload.conversion("f") - workload.conversion("nothing") == pytest.approx(5000 * 3e-9)


def test_workloads_count_alike(placement: Placement) -> None:
    """A batch takes longer, but its shares of the time weigh as much as those of one sample."""
    timing = Timing(placement, [{}, {}])
    batch = Profile({name: 100 * seconds for name, seconds in UNITS.items()}, {}, 100 * 10e-6)
    timing.learn([FLOATS, batch], ())
    assert timing.costs().nodes["y"].on_floats == pytest.approx(6 / 40)
    with pytest.raises(ValueError, match="zip"):
        timing.learn([FLOATS], ())


def test_accuracy_is_a_penalty(placement: Placement) -> None:
    timing = Timing(placement, [{}])
    timing.learn([FLOATS], ())
    timing.learn([Profile({}, {})], set(placement.parts))
    assert cheapest(timing.costs()).integers == set(placement.parts)
    costs = timing.costs({"d": 0.5})
    assert costs.penalty({"a", "d"}) == 0.5
    assert "d" not in cheapest(costs, multiplier=1e3).integers


@pytest.mark.parametrize(("kind", "seed"), product((images, sentences), range(4)))
def test_the_cost_of_a_placement_is_that_of_its_nodes_and_conversions(
    kind: type, seed: int, worker: Worker
) -> None:
    """Against a count by hand over all values."""
    placement = Placement(Model.of(kind(seed, 17).model()), Run(CPU, worker))
    rng = np.random.default_rng(seed)
    names = sorted(placement.parts)
    values = {v for part in placement.parts.values() for v in (*part.inputs, *part.outputs)}
    values = {value for value in values if g.constant(value) is None}
    conversions = {value.name or "": rng.uniform(1, 2) for value in values}
    floats, integers = ({name: rng.uniform(1, 9) for name in names} for _ in range(2))
    timing = Timing(placement, [{}])
    timing.learn([Profile(floats, {}, 100.0)], ())
    timing.learn([Profile(integers, conversions)], set(names))
    costs, total = timing.costs(), sum(floats.values()) + 100
    heads = {part.node: name for name, part in placement.parts.items()}
    for _ in range(10):
        chosen = {name for name in names if rng.random() < 0.5}
        expected = sum((integers if name in chosen else floats)[name] for name in names)
        for value in values:
            maker = placement.makers.get(value)
            on_integers = [heads.get(use.node) in chosen for use in value.uses()]
            if maker is None or maker.name not in chosen:
                converted = any(on_integers)
            elif maker.kernel.float_result and not any(use.node in heads for use in value.uses()):
                converted = False  # the kernel gives floats
            else:
                converted = value.is_graph_output() or not all(on_integers)
            expected += conversions[value.name or ""] * converted
        assert costs.seconds(chosen) == pytest.approx(expected / total)
