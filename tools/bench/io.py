"""Load and save of a model against ``cp`` of its files, interleaved, with the peak of resident memory.

    python tools/bench/io.py decoder.onnx --rounds 3
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

_CHILD = "from graphopt.model import Model; import sys; Model.load(sys.argv[1]).save(sys.argv[2])"


def files_of(path: Path) -> list[Path]:
    """The model file and its external data files."""
    model = onnx.load(path, load_external_data=False)
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path, *(path.parent / location for location in sorted(locations))]


def seconds(command: list[str]) -> float:
    """Run a command and return the seconds that it took."""
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def copy_files(files: list[Path], folder: Path) -> float:
    """Copy with cp, and sync as graphopt does, so that both pay for the disk."""
    names = [str(file) for file in files]
    copies = [str(folder / file.name) for file in files]
    return seconds(["cp", "--reflink=never", *names, str(folder)]) + seconds(["sync", *copies])


def load_and_save(path: Path, folder: Path) -> float:
    """Load and save in a new process, imports included."""
    return seconds([sys.executable, "-c", _CHILD, str(path), str(folder / "out.onnx")])


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    files = files_of(options.model)
    times: dict[str, list[float]] = {"cp": [], "graphopt": []}
    home = options.model.absolute().parent
    for _ in range(options.rounds):
        for name in times:
            with tempfile.TemporaryDirectory(dir=home) as folder:
                run = copy_files(files, Path(folder)) if name == "cp" else load_and_save(files[0], Path(folder))
            times[name].append(run)
    size = sum(os.path.getsize(file) for file in files)
    print(f"{options.model.name}: {size / 1e6:,.0f} MB in {len(files)} files")
    for name, values in times.items():
        print(f"{name:9} {statistics.median(values):7.2f} s   ({min(values):.2f} to {max(values):.2f})")
    ratio = statistics.median(times["graphopt"]) / statistics.median(times["cp"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"graphopt takes {ratio:.2f} of cp, and at most {peak:,.0f} MB of resident memory")


if __name__ == "__main__":
    main()
