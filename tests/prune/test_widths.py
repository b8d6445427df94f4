"""Widths that kernels compute at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.prune import kernel_blocks
from graphopt_passes.prune.widths import widths


def group(width: int, op: str = "Conv", elements: int = 1) -> Any:
    port = SimpleNamespace(node=SimpleNamespace(op_type=op))
    producer = SimpleNamespace(units=np.repeat(np.arange(width), elements), port=port)
    return SimpleNamespace(width=width, producers=(producer,))


@pytest.mark.parametrize(
    ("width", "block", "expected"),
    [
        (64, None, [16, 32, 48]),
        (32, None, [8, 16, 24]),
        (16, None, [4, 8, 12]),
        (6, None, [1, 2, 3, 4, 5]),
        (64, 16, [16, 32, 48]),
        (32, 16, [16]),
        (16, 16, []),
        (32, 8, [8, 16, 24]),
        (24, 8, [8, 16]),
    ],
)
def test_widths_are_multiples(width: int, block: int | None, expected: list[int]) -> None:
    assert list(widths(group(width), block)) == expected


def test_blocks_are_those_of_convs() -> None:
    assert list(widths(group(32, "Gemm"), 16)) == [8, 16, 24]


def test_heads_of_several_channels_go_one_by_one() -> None:
    assert list(widths(group(4, "MatMul", elements=32), 16)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [([9.4, 9.6, 10.0], 16), ([6.8, 7.0, 10.0], 8), ([5.6, 6.9, 10.0], 4)],
)
def test_a_block_is_what_takes_as_long_as_more_channels(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], expected: int
) -> None:
    monkeypatch.setattr(kernel_blocks, "_seconds", lambda *_: seconds)
    task: Any = SimpleNamespace(worker=None, target=CPU)
    assert kernel_blocks.block(task) == expected


def test_convs_can_be_timed(worker: Worker) -> None:
    task: Any = SimpleNamespace(worker=worker, target=CPU)
    assert kernel_blocks.block(task) in (4, 8, 16)
