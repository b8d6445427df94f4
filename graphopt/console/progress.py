"""Says on a terminal what takes long: a spinner with the time, a bar where the number of steps is known."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer

from graphopt.progress import Progress, silent

_PATIENCE_S = 1.0


@contextmanager
def shown(enabled: bool) -> Iterator[Progress]:
    """Progress on stderr while the block runs, if that is a terminal; work under a second shows nothing."""
    if not (enabled and sys.stderr.isatty()):
        yield silent
        return
    display = _Display()
    try:
        yield display
    finally:
        display.close()


class _Display:
    """The last thing told, drawn from the first second on."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._last: tuple[str, int | None, int | None] = ("starting", None, None)
        self._closed = False
        self._timer = Timer(_PATIENCE_S, self._open)
        self._timer.daemon = True
        self._timer.start()

    def __call__(self, stage: str, done: int | None = None, total: int | None = None) -> None:
        with self._lock:
            self._last = (stage, done, total)
            if hasattr(self, "_bars"):
                self._draw()

    def close(self) -> None:
        """Take the display away."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if hasattr(self, "_bars"):
                self._bars.stop()

    def _open(self) -> None:
        from rich import progress
        from rich.console import Console

        columns = (
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[steps]}", style="dim"),
            progress.TimeElapsedColumn(),
        )
        with self._lock:
            if not self._closed:
                self._bars = progress.Progress(*columns, console=Console(stderr=True), transient=True)
                self._task = self._bars.add_task("", total=None, steps="")
                self._bars.start()
                self._draw()

    def _draw(self) -> None:
        stage, done, total = self._last
        steps = f"{done}/{total}" if total else ""
        self._bars.update(self._task, description=stage, completed=done or 0, total=total, steps=steps)
