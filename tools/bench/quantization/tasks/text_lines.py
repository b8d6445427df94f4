"""PP-OCRv4's recognizer on rendered lines of English text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import onnx
from PIL import Image

from tools.bench.quantization import text
from tools.bench.quantization.scoring import decode
from tools.bench.quantization.task import Example, Feeds, Prediction, Run, Task, repeated

HEIGHT = 48


class TextLines(Task):
    """A line is right if every character but space around it is; lines keep their width, so shapes differ."""

    name = "ppocrv4_rec"
    kind = "Reading text"
    metric = "lines without error, %"
    agreement_is = "equal lines, %"

    def calibration(self) -> Sequence[Feeds]:
        """64 lines."""
        return [example.feeds for example in lines("calibration", 64, seed=1)]

    def examples(self) -> Sequence[Example]:
        """200 lines of other articles."""
        return lines("test", 200, seed=2)

    def workloads(self) -> dict[str, Feeds]:
        """One line of middle length, and 32 of them."""
        shown = text.line("a line of middle length", np.random.default_rng(3))
        sample = {"x": text.pixels(shown.resize((320, HEIGHT), Image.Resampling.BILINEAR))}
        return {"batch 1": sample, "batch 32": repeated(sample, 32)}

    def predict(self, run: Run, example: Example) -> Prediction:
        """Probabilities [1, steps, characters], and the line that they spell."""
        values = run(example.feeds)[0]
        return Prediction(values, np.array([decode(values[0].argmax(-1), self.characters).strip()]))

    @cached_property
    def characters(self) -> list[str]:
        """The alphabet, from the model's metadata; 0 is the blank, the last is the space."""
        properties = onnx.load(self.model(), load_external_data=False).metadata_props
        listed = next(entry.value for entry in properties if entry.key == "character")
        return ["", *listed.splitlines(), " "]


def lines(split: str, count: int, seed: int) -> list[Example]:
    """Pictures of lines, with what they say."""
    rng = np.random.default_rng(seed)
    said = text.phrases(split, count, longest=6, rng=rng)
    return [Example({"x": text.pixels(scaled(text.line(one, rng)))}, np.array([one])) for one in said]


def scaled(image: Image.Image) -> Image.Image:
    """The picture at the height that the model takes."""
    width = max(8, round(image.width * HEIGHT / image.height))
    return image.resize((width, HEIGHT), Image.Resampling.BILINEAR)


def task(name: str) -> Task:
    """The task."""
    return TextLines()
