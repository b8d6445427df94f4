"""What can watch a pipeline between passes: print the graph, dump numbered files, check every change."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError, UsageError
from graphopt.storage.files import refusals, write_text

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.pipeline import Observer, Pass, Run


def _to_stderr(text: str) -> None:
    """As compilers do: stdout is for the result."""
    print(text, file=sys.stderr)


def print_after(name: str, write: Callable[[str], None] = _to_stderr) -> Observer:
    """Write the graph as ONNX text after the pass called ``name``, or after every one for ``all``."""

    def observe(step: Pass, model: Model, run: Run, changed: bool) -> None:
        if name in ("all", step.name):
            write(f"; after {step} ({'changed' if changed else 'unchanged'})\n{_text(model)}")

    return observe


def dump(folder: Path) -> Observer:
    """Save ``NNN-pass.onnx`` and its text form after every pass that changed the model.

    Raises:
        UsageError: ``folder`` is a file.
        SystemRefusedError: the folder cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"cannot dump into {folder}: it is no folder")
    with refusals(f"cannot make the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    count = 0

    def observe(step: Pass, model: Model, run: Run, changed: bool) -> None:
        nonlocal count
        count += 1
        if changed:
            model.save(folder / f"{count:03}-{step.name}.onnx")
            write_text(folder / f"{count:03}-{step.name}.txt", _text(model))

    return observe


class FingerprintCheck:
    """Raises when a pass says "unchanged" but changed the model, or the other way round."""

    def __init__(self, model: Model) -> None:
        self._last = _fingerprint(model)

    def __call__(self, step: Pass, model: Model, run: Run, changed: bool) -> None:
        """Compare the model's fingerprint with what the pass claims.

        Raises:
            GraphoptError: the claim is wrong; this is a bug of the pass.
        """
        before, self._last = self._last, _fingerprint(model)
        if changed != (before != self._last):
            claim = "changed" if changed else "unchanged"
            raise GraphoptError(
                f"bug in pass '{step.name}': it says {claim}, which is not so; leave it out and report it"
            )


def _fingerprint(model: Model) -> bytes:
    """A hash of everything but the weights' content, which only a change of names or shapes can replace."""
    return hashlib.sha256(model.skeleton().SerializeToString(deterministic=True)).digest()


def _text(model: Model) -> str:
    import onnx.printer

    return onnx.printer.to_text(model.skeleton())
