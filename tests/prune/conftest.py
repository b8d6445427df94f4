"""One worker for all tests of pruning."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from graphopt.runtime.worker import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker() as shared:
        yield shared
