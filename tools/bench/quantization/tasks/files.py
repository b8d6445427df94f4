"""Magika on the files of this machine, whose extension tells what they are."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from tools import models
from tools.bench.quantization.task import Array, Example, Feeds, Prediction, Run, Task

FOLDERS = [Path("/usr/share"), Path("/usr/lib"), Path(sys.prefix)]
MOST = 200  # files of one kind
FEWEST_BYTES = 64
BLOCK, PART, PADDING = 4096, 1024, 256
BATCH = 50


class Files(Task):
    """Which kind of file is it? Half of the files found calibrate (100 of them), the other half test."""

    name = "magika"
    kind = "Language and files"
    metric = "files whose kind is that of their extension, %"

    def calibration(self) -> Sequence[Feeds]:
        """100 files."""
        return [{"bytes": features(file)[None]} for file, _ in self.found[0::2][:100]]

    def examples(self) -> Sequence[Example]:
        """The files that do not calibrate, in batches."""
        test = self.found[1::2]
        parts = [test[start : start + BATCH] for start in range(0, len(test), BATCH)]
        return [
            Example(
                {"bytes": np.stack([features(file) for file, _ in part])},
                np.array([kind for _, kind in part]),
            )
            for part in parts
        ]

    def workloads(self) -> dict[str, Feeds]:
        """One file, and 32."""
        files = np.concatenate([sample["bytes"] for sample in self.calibration()[:32]])
        return {"batch 1": {"bytes": files[:1]}, "batch 32": {"bytes": files}}

    def predict(self, run: Run, example: Example) -> Prediction:
        """Probabilities [files, kinds], and the names of the likeliest."""
        values = run(example.feeds)[0]
        return Prediction(values, np.array(self.kinds)[values.argmax(1)])

    @cached_property
    def found(self) -> list[tuple[Path, str]]:
        """Files and their kinds, in an order drawn from a seed; the model can tell any two apart."""
        by_kind: dict[str, list[Path]] = defaultdict(list)
        for file in sorted(walk()):
            kind = self.extensions.get(file.suffix[1:])
            if kind and not file.is_symlink() and file.stat().st_size >= FEWEST_BYTES:
                by_kind[kind].append(file)
        rng = np.random.default_rng(0)
        chosen = [(file, kind) for kind, files in by_kind.items() for file in some(files, rng)]
        different = {features(file).tobytes(): (file, kind) for file, kind in chosen}  # no copies
        pairs = list(different.values())
        return [pairs[index] for index in rng.permutation(len(pairs))]

    @cached_property
    def kinds(self) -> list[str]:
        """What the model tells apart."""
        config = json.loads(self.member("magika/models/standard_v3_3/config.min.json"))
        return list(config["target_labels_space"])

    @cached_property
    def extensions(self) -> dict[str, str]:
        """The extensions that belong to one of these kinds, and to no other kind of file."""
        owners: dict[str, set[str]] = defaultdict(set)
        for kind, facts in json.loads(self.member("magika/config/content_types_kb.min.json")).items():
            for extension in facts["extensions"]:
                owners[extension].add(kind)
        return {
            ext: next(iter(kinds))
            for ext, kinds in owners.items()
            if len(kinds) == 1 and kinds <= set(self.kinds)
        }

    def member(self, path: str) -> bytes:
        """A file of the model's package."""
        return models.extract(models.archive(models.package("magika")), path)


def walk() -> Iterator[Path]:
    """All files in the folders."""
    for folder in FOLDERS:
        for root, _, names in os.walk(folder):
            yield from (Path(root, name) for name in names)


def some(files: list[Path], rng: np.random.Generator) -> list[Path]:
    """At most `MOST` of the files."""
    return [files[index] for index in rng.permutation(len(files))[:MOST]]


def features(file: Path) -> Array:
    """The first and last 1,024 bytes of a stripped file, int32 [2048]; 256 is padding."""
    with file.open("rb") as stream:
        first = stream.read(BLOCK)
        stream.seek(max(0, file.stat().st_size - BLOCK))
        last = stream.read(BLOCK)
    head = np.frombuffer(first.lstrip()[:PART], np.uint8)
    tail = np.frombuffer(last.rstrip()[-PART:], np.uint8)
    padded = np.full(2 * PART, PADDING, np.int32)
    padded[: len(head)] = head
    padded[2 * PART - len(tail) :] = tail
    return padded


def task(name: str) -> Task:
    """The task."""
    return Files()
