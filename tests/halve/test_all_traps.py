"""Every trap of the exact passes, converted without any protection: the result is valid, loads and runs."""

from __future__ import annotations

import pytest

from graphopt.runtime.worker import Worker
from graphopt_passes.halve.signatures import HALVES
from tests.halve.support import converted
from tests.support import compute
from tests.traps import kit, test_traps

assert test_traps  # registers the traps


@pytest.mark.parametrize("name", kit.names())
def test_float16(name: str, worker: Worker) -> None:
    trap = kit.make(name)
    for keep_io in (True, False):
        after, _ = converted(trap.model, worker, keep_io=keep_io)
        if keep_io:
            for feeds in trap.feeds:
                old, new = compute(trap.model, feeds), compute(after, feeds)
                assert [type(one) for one in new] == [type(one) for one in old]


@pytest.mark.parametrize("name", kit.names())
def test_bfloat16(name: str, worker: Worker) -> None:
    trap = kit.make(name)
    for keep_io in (True, False):
        converted(trap.model, worker, "bfloat16", keep_io=keep_io)


@pytest.mark.parametrize("name", kit.names())
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_emulation(name: str, half: str, worker: Worker) -> None:
    """The rounded float model has the types of the original throughout."""
    trap = kit.make(name)
    after, _ = converted(trap.model, worker, half, emulate=True)
    assert not {tensor.data_type for tensor in after.graph.initializer} & set(map(int, HALVES.values())) - {
        tensor.data_type for tensor in trap.model.graph.initializer
    }
    for feeds in trap.feeds:
        compute(after, feeds)
