"""Photographs that scikit-image ships, read out of its package; needs Pillow."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

from tools import models

NAMES = {
    "calibration": [
        "astronaut.png",
        "brick.png",
        "coffee.png",
        "grass.png",
        "ihc.png",
        "motorcycle_left.png",
    ],
    "test": ["camera.png", "chelsea.png", "coins.png", "gravel.png", "hubble_deep_field.jpg", "rocket.jpg"],
}


@cache
def photograph(name: str) -> Image.Image:
    """One photograph as RGB."""
    data = models.extract(models.archive(models.package("skimage")), f"skimage/data/{name}")
    return Image.open(io.BytesIO(data)).convert("RGB")


def crops(split: str, count: int, width: int, height: int, seed: int) -> Iterator[Image.Image]:
    """Drawn parts of the photographs of a split, which others do not show, scaled to one size."""
    rng = np.random.default_rng(seed)
    for _, name in zip(range(count), itertools.cycle(NAMES[split]), strict=False):
        yield crop(photograph(name), width, height, rng)


def crop(image: Image.Image, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A drawn part of the image, of the right aspect."""
    scale = rng.uniform(0.4, 1) * min(image.width / width, image.height / height)
    part = int(width * scale), int(height * scale)
    left, top = rng.integers(0, image.width - part[0] + 1), rng.integers(0, image.height - part[1] + 1)
    box = (int(left), int(top), int(left) + part[0], int(top) + part[1])
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
