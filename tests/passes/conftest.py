"""One worker for all tests of passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from graphopt.runtime.worker import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker(memory_limit=4 << 30, time_limit=60) as worker:
        yield worker
