"""Let a contestant convert a model, within limits on time and memory, unless an earlier result can serve.

Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import models
from tools.bench.process import measure

Facts = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one conversion may take: seconds, and bytes of data memory, so that not the machine fails."""

    seconds: float
    bytes: int


def convert(
    command: list[str], sources: Sequence[Path], result: Path, limits: Limits, *, reuse: bool = False
) -> Facts:
    """Run the command that makes `result`, in a folder that nobody keeps; so its paths must be absolute.

    Args:
        command: of the contestant.
        sources: the files that it reads.
        result: the file that it writes; a record of the run is kept beside it.
        limits: on its time and memory.
        reuse: take the result of an earlier run on sources of the same content.

    Returns:
        `seconds`, `peak_bytes`, `bytes` of the result, and under `why` the reason if it failed.
    """
    record, mark = result.with_suffix(".json"), fingerprint(sources)
    if reuse and record.exists():
        facts: Facts = json.loads(record.read_text())
        if facts["mark"] == mark and (facts["why"] or result.exists()):
            return facts
    result.unlink(missing_ok=True)
    limited = ["prlimit", f"--data={limits.bytes}:", *command]
    with tempfile.TemporaryDirectory() as scratch:  # some write large files into the folder they are in
        usage = measure(limited, limits.seconds, environment(), scratch)
    failed = usage.exit_code != 0 or not result.exists()
    facts = {
        "seconds": usage.seconds,
        "peak_bytes": usage.peak_bytes,
        "why": f"exit {usage.exit_code}: {usage.message}" if failed else "",
        "bytes": 0 if failed else result.stat().st_size,
        "mark": mark,
    }
    record.write_text(json.dumps(facts))
    return facts


def environment() -> dict[str, str]:
    """This one's, with the project on Python's path, where the peers' scripts are."""
    paths = [str(models.ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over the contents of files."""
    digest = hashlib.sha256()
    for content in blocks(files):
        digest.update(content)
    return digest.hexdigest()


def blocks(files: Sequence[Path]) -> Iterator[bytes]:
    """Contents of files, in blocks of a megabyte, so that this process stays small."""
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                yield block
