"""Every golden is what its pass makes of it, to the letter; ``python -m tools.bless`` rewrites them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from graphopt.runtime.worker import Worker
from tests.golden import FOLDER, Golden

PATHS = sorted(FOLDER.glob("*/*.txt"))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(time_limit=60) as worker:
        yield worker


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden(path: Path, worker: Worker) -> None:
    golden = Golden.read(path)
    assert str(golden.blessed(path.parent.name, worker)) == str(golden)


def test_goldens_are_there() -> None:
    assert len(PATHS) > 15
