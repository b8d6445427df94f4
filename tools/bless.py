"""Rewrite the goldens as the passes are now: `python -m tools.bless [PATH ...]`; then read the diff."""

from __future__ import annotations

import sys
from pathlib import Path

from graphopt.runtime.worker import Worker
from tests.golden import FOLDER, Golden


def main() -> None:
    """Bless the given files, or all."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*/*.txt"))
    with Worker(time_limit=60) as worker:
        for path in paths:
            old = Golden.read(path)
            new = old.blessed(path.parent.name, worker)
            path.write_text(str(new))
            print("unchanged" if new == old else "blessed  ", path)


if __name__ == "__main__":
    main()
