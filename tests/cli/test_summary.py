"""The words of reports: grouping of refusals, numbers as people read them, valid JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from graphopt.console import summary, units
from graphopt.journal import Refusal, Rewrite
from graphopt.plain import to_json
from graphopt.report import LeftOut, Report


def _report(*refusals: Refusal) -> Report:
    return Report("in.onnx", "out.onnx", "", "cpu", refusals=list(refusals))


def test_equal_reasons_are_counted_together() -> None:
    report = _report(
        *[Refusal("conv-bn", f"Conv 'c{i}'", f"the intermediate 'v{i}' has 2 consumers") for i in range(12)],
        Refusal("gemm", "MatMul 'm'", "'x' is no matrix"),
    )
    told = [text for _, text in summary.facts(report, verbose=0)]
    assert "12x conv-bn: the intermediate … has 2 consumers" in told
    assert "gemm at MatMul 'm': 'x' is no matrix" in told


def test_only_the_most_frequent_reasons_are_shown() -> None:
    report = _report(*[Refusal("rule", f"at {i}", f"reason {'abcdefg'[i]}") for i in range(7)])
    assert ("", "and 4 more; -v shows them") in list(summary.facts(report, verbose=0))
    assert sum("reason" in text for _, text in summary.facts(report, verbose=1)) == 7


def test_what_was_left_out_is_named_with_its_reason() -> None:
    report = _report()
    report.left_out = [LeftOut(Rewrite("conv-bn", "y"), "breaks parity: output 'y' differs")]
    assert ("left out", "conv-bn at y: breaks parity: output 'y' differs") in list(summary.facts(report, 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.size(999), "999 B"),
        (units.size(13_600_000), "13.6 MB"),
        (units.size(999_600), "1.00 MB"),
        (units.count(4_089_184_256), "4.09 G"),
        (units.seconds(0.000123), "123 µs"),
        (units.seconds(0.9999), "1.00 s"),
        (units.seconds(75), "1 min 15 s"),
        (units.change(200, 130), "-35 %"),
        (units.change(100_000, 100_003), "+0.003 %"),
        (units.change(5, 5), "same"),
        (units.plural(1, "node"), "1 node"),
        (units.plural(2000, "node"), "2,000 nodes"),
    ],
)
def test_units(text: str, expected: str) -> None:
    assert text == expected


def test_json_is_strictly_valid() -> None:
    record = {"a": math.inf, "b": [math.nan, np.float32(1.5), np.arange(2)], "c": {("x", 1): {2}}}
    read = json.loads(to_json(record))
    assert read == {"a": "inf", "b": ["nan", 1.5, [0, 1]], "c": {"('x', 1)": [2]}}
