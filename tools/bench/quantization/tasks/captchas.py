"""ddddocr's recognizer on pictures of the package captcha."""

from __future__ import annotations

import ast
import random
import string
from collections.abc import Sequence
from functools import cached_property
from unittest import mock

import numpy as np
from captcha import image
from PIL import Image

from tools import models
from tools.bench.quantization.scoring import decode
from tools.bench.quantization.task import Array, Example, Feeds, Prediction, Run, Task

HEIGHT = 64


class Captchas(Task):
    """A number is right if every digit is."""

    name = "ddddocr_common"
    kind = "Reading text"
    metric = "numbers without error, %"
    agreement_is = "equal numbers, %"

    def calibration(self) -> Sequence[Feeds]:
        """64 pictures of four to six digits."""
        return [example.feeds for example in drawn(64, seed=1)]

    def examples(self) -> Sequence[Example]:
        """200 other pictures."""
        return drawn(200, seed=2)

    def predict(self, run: Run, example: Example) -> Prediction:
        """Logits [steps, 1, characters], and the text that they spell."""
        values = run(example.feeds)[0]
        found = decode(values.reshape(-1, values.shape[-1]).argmax(-1), self.characters)
        return Prediction(values, np.array([found]))

    @cached_property
    def characters(self) -> list[str]:
        """The alphabet: a list in the source of the model's package; 0 is the blank."""
        wheel = models.archive(models.package("ddddocr"))
        tree = ast.parse(models.extract(wheel, "ddddocr/charsets.py"))
        lists = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        found: list[str] = ast.literal_eval(lists["CHARSET_BETA"])
        return found


class Seeded:
    """Stands in for the module `secrets`, of which the package draws, so that pictures repeat."""

    def __init__(self, rng: random.Random) -> None:
        self.randbelow, self.randbits, self.choice = rng.randrange, rng.getrandbits, rng.choice


def drawn(count: int, seed: int) -> list[Example]:
    """Pictures with their text."""
    rng = random.Random(seed)
    said = ["".join(rng.choices(string.digits, k=rng.randint(4, 6))) for _ in range(count)]
    with mock.patch.object(image, "secrets", Seeded(rng)):
        return [Example({"input1": picture(one)}, np.array([one])) for one in said]


def picture(said: str) -> Array:
    """A captcha in shades of grey, float32 [1, 1, 64, width] in 0…1."""
    drawing = image.ImageCaptcha(width=40 * len(said), height=60).generate_image(said)
    width = int(drawing.width * HEIGHT / drawing.height)
    grey = drawing.resize((width, HEIGHT), Image.Resampling.LANCZOS).convert("L")
    return np.asarray(grey, np.float32)[None, None] / np.float32(255)


def task(name: str) -> Task:
    """The task."""
    return Captchas()
