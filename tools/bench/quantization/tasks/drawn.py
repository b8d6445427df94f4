"""Topologies of known networks with drawn weights, on parts of photographs: latency and SQNR only.

He's initialization, and BatchNormalization statistics of the photographs (see `settle`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tools import models
from tools.bench.quantization import photographs, samples
from tools.bench.quantization.settle import settled
from tools.bench.quantization.task import Array, Example, Feeds, Prediction, Run, Task

SIZE = 224
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet
LEAST_VARIATION = 0.1  # of the outputs, across photographs; below, a model says nothing about quantizers
SETTLING = 8  # photographs for the statistics


@dataclass(frozen=True)
class Drawn(Task):
    """There are no right answers, but the outputs vary with what is seen."""

    name: str
    kind: str = "Drawn weights"

    def calibration(self) -> Sequence[Feeds]:
        """64 parts of photographs."""
        return self.feeds("calibration", 64)

    def examples(self) -> Sequence[Example]:
        """64 parts of other photographs."""
        return [Example(feeds) for feeds in self.feeds("test", 64)]

    def model(self) -> Path:
        """The model with settled statistics."""
        return settled(self.name, self.feeds("calibration", SETTLING))

    def feeds(self, split: str, count: int) -> list[Feeds]:
        """Pictures under the name of the model's input."""
        return list(self.stream(split, count))

    def stream(self, split: str, count: int) -> Iterator[Feeds]:
        """The same, one in memory at a time."""
        (name,) = models.recipes()[self.name].shapes
        for image in photographs.crops(split, count, SIZE, SIZE, seed=0):
            yield {name: pixels(image)}

    def predict(self, run: Run, example: Example) -> Prediction:
        """Logits [1, classes] and the largest."""
        values = run(example.feeds)[0].reshape(1, -1)
        return Prediction(values, values.argmax(1))

    def agreement(self, reference: Sequence[Prediction], found: Sequence[Prediction]) -> float:
        """The percentage of equal answers.

        Raises:
            ValueError: the fp32 outputs barely vary, so that agreement would mean nothing.
        """
        share = variation([one.values for one in reference if one.values is not None])
        if share < LEAST_VARIATION:
            raise ValueError(f"the outputs vary by only {100 * share:.1f} % of their size")
        return super().agreement(reference, found)


def variation(values: Sequence[Array]) -> float:
    """Standard deviation across examples, relative to the size of the values."""
    stacked = np.concatenate(values)
    return float(np.sqrt(stacked.var(0).mean() / np.square(stacked).mean()))


def pixels(image: Image.Image) -> Array:
    """A picture as these networks take it, float32 [1, 3, h, w]."""
    array = (np.asarray(image, np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None])


def task(name: str) -> Task:
    """The task of one of the networks."""
    return Drawn(name)


def main() -> None:
    """Write COUNT samples for the network NAME into FOLDER; print the model's path."""
    name, count, folder = sys.argv[1:]
    samples.write(Drawn(name).stream("calibration", int(count)), Path(folder))
    print(Drawn(name).model())


if __name__ == "__main__":
    main()
