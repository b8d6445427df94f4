"""Progress is drawn on a terminal, after a second, and nowhere else."""

from __future__ import annotations

import os
import pty
from pathlib import Path

from .conftest import start

SLOW = """
import numpy as np, time
def samples():
    for _ in range(3):
        time.sleep(0.7)
        yield {"x": np.ones((1, 4), np.float32)}
"""


def _read(descriptor: int) -> str:
    """All that is written to a terminal until its writer is gone."""
    parts = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except OSError:  # how Linux says that the other side has closed
        pass
    return b"".join(parts).decode()


def test_terminal(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    reader, writer = pty.openpty()
    out = tiny.with_name("out.onnx")
    child = start(
        "optimize", tiny, out, "--data", "slow:samples", "--no-measure", stderr=writer, cwd=tmp_path
    )
    os.close(writer)
    drawn = _read(reader)
    assert child.wait(timeout=60) == 0 and child.stdout is not None
    assert "verifying" in drawn and "0:00:0" in drawn
    assert "\x1b" not in child.stdout.read()


def test_pipe_sees_nothing(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    out = tiny.with_name("out.onnx")
    child = start("optimize", tiny, out, "--data", "slow:samples", "--no-measure", cwd=tmp_path)
    _, err = child.communicate(timeout=60)
    assert err == ""
