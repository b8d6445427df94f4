"""Load and save of a model against ``cp`` of its files, interleaved, with the peak of resident memory.

python tools/bench/io.py decoder.onnx --rounds 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

_CHILD = """
import sys
from graphopt.model import Model
Model.load(sys.argv[1]).save(sys.argv[2])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


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


def copy_files(files: list[Path], folder: Path) -> tuple[float, float]:
    """Copy with cp, and sync as graphopt does, so that both pay for the disk."""
    start = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", *map(str, files), str(folder)], check=True)
    subprocess.run(["sync", *(str(folder / file.name) for file in files)], check=True)
    return time.perf_counter() - start, 0.0


def load_and_save(files: list[Path], folder: Path) -> tuple[float, float]:
    """Load and save in a new process, imports included; seconds and peak resident memory in MB."""
    start = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, str(files[0]), str(folder / "out.onnx")]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, int(child.stdout) / 1024


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    files = files_of(options.model)
    runs: dict[str, list[tuple[float, float]]] = {"cp": [], "graphopt": []}
    for _ in range(options.rounds):
        for name, measure in ("cp", copy_files), ("graphopt", load_and_save):
            with tempfile.TemporaryDirectory(dir=options.model.absolute().parent) as folder:
                runs[name].append(measure(files, Path(folder)))
    size = sum(os.path.getsize(file) for file in files)
    print(f"{options.model.name}: {size / 1e6:,.0f} MB in {len(files)} files")
    median = {name: statistics.median(time for time, _ in measured) for name, measured in runs.items()}
    for name, measured in runs.items():
        times = [time for time, _ in measured]
        print(f"{name:9} {median[name]:7.2f} s   ({min(times):.2f} to {max(times):.2f})")
    peak = max(memory for _, memory in runs["graphopt"])
    ratio = median["graphopt"] / median["cp"]
    print(f"graphopt takes {ratio:.2f} of the time of cp, and at most {peak:,.0f} MB of resident memory")


if __name__ == "__main__":
    main()
