"""The report of layers: a range is that of the grid on which a value really lies."""

from __future__ import annotations

from typing import Any, cast

import pytest

from graphopt.runtime.worker import Worker
from graphopt_passes.quantize.audit import Audit
from graphopt_passes.quantize.draft import Draft
from graphopt_passes.quantize.layer_report import Findings
from graphopt_passes.quantize.ranges import Range
from tests.quantize.test_placement import place

POOLED = """agraph (float[1,4,4,4] x) => (float[1,16] y) {
    a = Conv(x, k)  p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)  y = Flatten(p)
}"""
PRODUCTS = "agraph (float[4,4] x) => (float[4,4] y) { a = MatMul(x, w)  y = MatMul(a, w) }"


def ranges_told(text: str, worker: Worker, **draft: Any) -> dict[str, float | None]:
    """The upper end that is told for each part, where the range of the nth value ends at n."""
    placement = place(text, worker)
    names = ["x", *(part.outputs[0].name or "" for part in placement.parts.values())]
    ranges = {name: Range(0.0, float(end), "mse") for end, name in enumerate(names, 1)}
    made = Draft(cast(Any, None), cast(Any, None), frozenset(placement.parts), **draft)
    made.__dict__["audit"] = Audit(frozenset(), (), frozenset())
    told = Findings(cast(Any, None), placement, ranges)
    return {name: told._part(part, made).high for name, part in placement.parts.items()}


def test_what_moves_integers_has_the_range_of_what_it_moves(worker: Worker) -> None:
    assert ranges_told(POOLED, worker) == {"a": 2.0, "p": 2.0, "y": 2.0}


@pytest.mark.parametrize(("dynamic", "range_of_a"), [((), 2.0), (("y",), None)], ids=["static", "dynamic"])
def test_what_gives_floats_has_no_range(
    worker: Worker, dynamic: tuple[str, ...], range_of_a: float | None
) -> None:
    told = ranges_told(PRODUCTS, worker, dynamic=frozenset(dynamic))
    assert told == {"a": range_of_a, "y": None}
