"""slices-to-space-to-depth: strided slices of an image become SpaceToDepth, for any order of the patches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.worker import Worker
from graphopt_passes.exact.eliminate_dead_code import EliminateDeadCode
from graphopt_passes.fuse.slices_to_space_to_depth import SlicesToSpaceToDepth
from tests.support import assert_same, ops, parse, run_passes

OFFSETS = ((0, 0), (1, 0), (0, 1), (1, 1))  # the order of YOLO's Focus
END = 2**63 - 1


def focus(
    order=OFFSETS,
    channels: int = 3,
    *,
    tail: str = "y = Relu(depth)",
    outputs: str = "y",
    axis: int = 1,
    h="h",
):
    """A graph that cuts x into four patches, one Slice per axis as exporters write them."""
    nodes = "".join(
        f"r{k} = Slice(x, start{i}, end, axis2, two) p{k} = Slice(r{k}, start{j}, end, axis3, two) "
        for k, (i, j) in enumerate(order)
    )
    results = ", ".join(f"float[n,c,h,w] {name}" for name in outputs.split())
    return parse(
        f"""g (float[n,{channels},{h},w] x) => ({results})
        <int64[1] start0 = {{0}}, int64[1] start1 = {{1}}, int64[1] end = {{{END}}}, int64[1] two = {{2}},
         int64[1] axis2 = {{2}}, int64[1] axis3 = {{3}},
         float[2,{4 * channels},1,1] weight = {{{", ".join(str(v) for v in range(8 * channels))}}}>
        {{ {nodes} depth = Concat<axis = {axis}>(p0, p1, p2, p3) {tail} }}"""
    )


def images(*shape: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(OFFSETS), channels=st.integers(1, 4), half=st.tuples(*[st.integers(1, 3)] * 2))
def test_every_order_of_the_patches(worker: Worker, order, channels: int, half: tuple[int, int]) -> None:
    proto = focus(tuple(order), channels)
    model, _ = run_passes(proto, SlicesToSpaceToDepth(), EliminateDeadCode(), worker=worker)
    in_order = tuple(order) == tuple(itertools.product((0, 1), repeat=2))
    assert ops(model) == {"SpaceToDepth": 1, "Relu": 1} | ({} if in_order else {"Gather": 1})
    assert_same(proto, model, images(2, channels, 2 * half[0], 2 * half[1]))


def test_a_conv_takes_the_permutation_into_its_weights(worker: Worker) -> None:
    proto = focus(tail="y = Conv(depth, weight)")
    model, _ = run_passes(proto, SlicesToSpaceToDepth(), EliminateDeadCode(), worker=worker)
    assert ops(model) == {"SpaceToDepth": 1, "Conv": 1}
    assert_same(proto, model, images(1, 3, 6, 4), rtol=1e-5)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (focus(axis=0), "not concatenated as channels"),
        (focus(h=1), "has empty patches"),
        (focus(((0, 0), (0, 0), (0, 1), (1, 1))), "do not cover each offset"),
        (focus(tail="y = Relu(depth) z = Neg(p0)", outputs="y z"), "needed elsewhere"),
        (focus(tail="y = Relu(depth)", outputs="y p1"), "needed elsewhere"),
    ],
)
def test_refusals_say_why(worker: Worker, graph, reason: str) -> None:
    model, run = run_passes(graph, SlicesToSpaceToDepth(), worker=worker)
    assert ops(model)["Slice"] == 8
    assert any(reason in refusal.reason for refusal in run.journal.refusals)
