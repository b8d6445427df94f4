"""The committed models on the 10,000 test images of Fashion-MNIST (Debian package dataset-fashion-mnist)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools import models
from tools.bench.quantization.task import Example, Feeds, Task
from tools.train import data

BATCH = 100


@dataclass(frozen=True)
class Fashion(Task):
    """Ten classes of clothes; calibrated on committed images of the training split."""

    name: str
    kind: str = "Fashion-MNIST"
    metric: str = "top-1, %"

    def calibration(self) -> Sequence[Feeds]:
        """The images of fashion_calibration.npz, one per call."""
        images = np.load(models.RECIPES.with_name("fashion_calibration.npz"))["input"]
        return [{"input": image[None]} for image in images]

    def examples(self) -> Sequence[Example]:
        """The whole test split, in batches."""
        test = data.load(Path(os.environ.get("FASHION_MNIST", data.DEBIAN)), "t10k")
        parts = [slice(start, start + BATCH) for start in range(0, len(test.images), BATCH)]
        return [Example({"input": test.images[part]}, test.labels[part]) for part in parts]

    def workloads(self) -> dict[str, Feeds]:
        """One image, and 32."""
        images = np.concatenate([sample["input"] for sample in self.calibration()[:32]])
        return {"batch 1": {"input": images[:1]}, "batch 32": {"input": images}}


def task(name: str) -> Task:
    """The task of one of the committed models."""
    return Fashion(name)
