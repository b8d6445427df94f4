"""Run one command and measure the whole process: wall time and peak memory.

Only the standard library is imported here and in `peers`: Linux counts the memory of the launching process,
which a child shares until it starts its program, to the child's peak.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What one run took: seconds of wall time, and the largest resident set of its processes in bytes."""

    seconds: float
    peak_bytes: int
    exit_code: int
    message: str


def measure(
    command: list[str],
    limit_s: float,
    environment: dict[str, str] | None = None,
    folder: str | None = None,
) -> Usage:
    """Run `command` to its end, or kill it after `limit_s` seconds; `message` is the last line it printed.

    `folder` is the one that it works in, by default this process's own.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=folder, start_new_session=True
        )
        exit_code, peak = _wait(child, start + limit_s)
        seconds = time.perf_counter() - start
        return Usage(seconds, peak, exit_code, _last_line(output.fileno()))


def _wait(child: subprocess.Popen[bytes], deadline: float) -> tuple[int, int]:
    """Exit code of `child`, and the largest resident set in bytes of it and its own children."""
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, usage.ru_maxrss * 1024
        if time.perf_counter() > deadline:
            os.killpg(child.pid, signal.SIGKILL)
        time.sleep(0.002)


def _last_line(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 4096, max(0, size - 4096)).decode(errors="replace").strip().splitlines()
    return tail[-1].strip()[:200] if tail else ""
