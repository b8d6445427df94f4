"""Memory of all processes that a command starts, taken together.

Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY_S = 0.2
PROC = Path("/proc")


class Peak:
    """The largest sum so far, in bytes."""

    bytes = 0


@contextmanager
def peak() -> Iterator[Peak]:
    """Watch this process's descendants, several times a second, until the end of the block."""
    found, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY_S):
            found.bytes = max(found.bytes, memory(os.getpid()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def memory(ancestor: int) -> int:
    """Bytes of all descendants of a process; a page that several share counts once (Linux's PSS)."""
    parents = {pid: parent(pid) for pid in map(int, filter(str.isdigit, os.listdir(PROC)))}
    return sum(proportional(pid) for pid in parents if descends(pid, ancestor, parents))


def descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    """Whether a process comes from another one, itself not included."""
    while pid in parents:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False


def parent(pid: int) -> int:
    """Parent of a process; 0 if it is gone."""
    try:
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def proportional(pid: int) -> int:
    """Bytes of one process, its share of those that others have too; 0 if it is gone."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
