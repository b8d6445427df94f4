"""The cheapest labelling, against all labellings of small graphs."""

from itertools import chain, combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_passes.quantize.partition import Choice, Costs, Crossing, cheapest, sweep

NAMES = "abcdef"
COSTS = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))


def subsets(names):
    return map(frozenset, chain.from_iterable(combinations(names, k) for k in range(len(names) + 1)))


@st.composite
def costs(draw):
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    choice = st.builds(Choice, COSTS, st.none() | COSTS, COSTS)
    some = st.sets(st.sampled_from(names), max_size=3)
    crossing = st.builds(
        Crossing, st.none() | st.sampled_from(names), some, COSTS, COSTS, st.booleans(), st.booleans()
    )
    return Costs(
        {name: draw(choice) for name in names},
        draw(st.lists(crossing, max_size=8)),
        draw(st.lists(some.map(tuple), max_size=2)),
    )


def scale(problem, multiplier):
    """The largest sum that rounding is relative to."""
    nodes = problem.nodes.values()
    total = sum(n.on_floats + (n.on_integers or 0) + multiplier * n.penalty for n in nodes)
    return total + sum(v.quantize + v.dequantize for v in problem.values)


@settings(max_examples=200, deadline=None)
@given(costs(), st.floats(0, 10))
def test_no_labelling_is_cheaper(problem, multiplier):
    def cost(integers):
        return problem.seconds(integers) + multiplier * problem.penalty(integers)

    found = cheapest(problem, multiplier)
    best = min(map(cost, subsets(problem.nodes)))
    assert found.seconds == problem.seconds(found.integers)
    assert cost(found.integers) <= best + 1e-6 * scale(problem, multiplier)


@settings(max_examples=60, deadline=None)
@given(costs())
def test_a_sweep_is_the_lower_hull_of_all_labellings(problem):
    found = sweep(problem)
    everything = [(problem.seconds(s), problem.penalty(s)) for s in subsets(problem.nodes)]
    everything = [pair for pair in everything if pair[0] < float("inf")]
    for multiplier in (0.0, 0.01, 0.3, 1.0, 3.0, 100.0):
        best = min(seconds + multiplier * penalty for seconds, penalty in everything)
        swept = min(one.seconds + multiplier * one.penalty for one in found)
        assert swept <= best + 1e-6 * scale(problem, multiplier)
    for one, other in pairwise(found):
        assert other.seconds >= one.seconds
        assert other.penalty < one.penalty or other.seconds == one.seconds


def test_along_a_sweep_nodes_only_turn_to_floats():
    rng = np.random.default_rng(0)
    nodes = {f"n{i}": Choice(*rng.uniform(0, 1, 3)) for i in range(60)}
    edges = [Crossing(f"n{i}", [f"n{i + 1}", f"n{i + 2}"], *rng.uniform(0, 0.3, 2)) for i in range(58)]
    found = sweep(Costs(nodes, edges))
    assert len(found) > 10
    assert all(other.integers < one.integers for one, other in pairwise(found))
    assert found[-1].integers == set()


def test_a_value_is_converted_once_for_all_its_readers():
    problem = Costs(
        {name: Choice(1.0, 0.4) for name in "abc"}, [Crossing(None, "abc", quantize=1.7, dequantize=0.0)]
    )
    assert cheapest(problem).integers == set("abc")
    assert cheapest(problem).seconds == pytest.approx(3 * 0.4 + 1.7)


def test_an_island_that_does_not_pay_for_its_conversions_stays_float():
    edges = [
        Crossing(None, "a", 0.3, 0.3),
        Crossing("a", "b", 0.3, 0.3),
        Crossing("b", "c", 0.3, 0.3),
        Crossing("c", (), 0.3, 0.3, read_as_float=True),
    ]
    gain = {"a": Choice(1.0, None), "b": Choice(1.0, 0.5), "c": Choice(1.0, None)}
    assert cheapest(Costs(gain, edges)).integers == set()
    alone = {"a": Choice(1.0, 0.8), "b": Choice(1.0, 0.8), "c": Choice(1.0, 0.6)}
    assert cheapest(Costs(alone, edges)).integers == set("abc")


def test_integers_that_give_floats_pay_no_dequantization():
    nodes = {"a": Choice(1.0, 0.5)}
    as_integers = Crossing("a", (), 0.6, 0.6, read_as_float=True)
    as_floats = Crossing("a", (), 0.6, 0.6, read_as_float=True, made_as_float=True)
    assert cheapest(Costs(nodes, [as_integers])).integers == set()
    assert cheapest(Costs(nodes, [as_floats])).integers == {"a"}


def test_a_group_agrees():
    nodes = {"a": Choice(1.0, 0.1), "b": Choice(1.0, 1.5), "c": Choice(1.0, None)}
    assert cheapest(Costs(nodes, [], [("a", "b")])).integers == {"a", "b"}
    assert cheapest(Costs(nodes, [], [("a", "b", "c")])).integers == set()


def test_between_equals_floats_are_chosen():
    assert cheapest(Costs({"a": Choice(1.0, 1.0)}, [])).integers == set()


def test_a_long_chain_is_solved():
    """Far more nodes than could be tried; the optimum is known: every second stretch pays."""
    nodes = {f"n{i}": Choice(1.0, 0.5 if (i // 10) % 2 else 1.5) for i in range(2000)}
    edges = [Crossing(f"n{i}", [f"n{i + 1}"], 0.7, 0.7) for i in range(1999)]
    found = cheapest(Costs(nodes, edges))
    assert found.integers == {name for name, choice in nodes.items() if choice.on_integers == 0.5}


@pytest.mark.parametrize("cost", [-1.0, float("nan")])
def test_costs_that_are_none_are_refused(cost):
    with pytest.raises(ValueError, match="a cost must not be negative"):
        cheapest(Costs({"a": Choice(cost, 1.0)}, []))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no costs are given for node 'b'"):
        cheapest(Costs({"a": Choice(1.0, 1.0)}, [Crossing("a", "b", 1.0, 1.0)]))
