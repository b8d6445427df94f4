"""English text out of gensim's Lee corpus, and pictures of it, all drawn from seeds.

Needs Pillow, and the DejaVu fonts (Debian package fonts-dejavu-core).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tools import models

FONTS = Path("/usr/share/fonts/truetype/dejavu")
CORPORA = {"calibration": "lee_background.cor", "test": "lee.cor"}  # 300 and 50 articles


def articles(split: str) -> list[str]:
    """News articles of the Lee corpus: `calibration` and `test` have none in common."""
    wheel = models.archive(models.package("gensim"))
    content = models.extract(wheel, f"gensim/test/test_data/{CORPORA[split]}")
    return [line for line in content.decode("utf-8", "replace").splitlines() if line.strip()]


def phrases(split: str, count: int, longest: int, rng: np.random.Generator) -> list[str]:
    """Runs of one to `longest` neighbouring words of the articles."""
    words = re.findall(r"[\x21-\x7e]+", " ".join(articles(split)))
    starts = rng.integers(0, len(words) - longest, count)
    lengths = rng.integers(1, longest + 1, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def fonts() -> list[Path]:
    """The DejaVu fonts.

    Raises:
        FileNotFoundError: they are not installed.
    """
    found = sorted(FONTS.glob("*.ttf"))
    if not found:
        raise FileNotFoundError(f"no fonts in {FONTS}: install fonts-dejavu-core")
    return found


def line(phrase: str, rng: np.random.Generator) -> Image.Image:
    """One line of text in a drawn font, size and colours, with some noise, as RGB."""
    choice = fonts()
    font = ImageFont.truetype(choice[rng.integers(len(choice))], int(rng.integers(18, 40)))
    left, top, right, bottom = font.getbbox(phrase)
    margin = int(rng.integers(2, 8))
    dark, light = rng.integers(0, 90, 3), rng.integers(165, 256, 3)
    paper, ink = (light, dark) if rng.random() < 0.8 else (dark, light)
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    image = Image.new("RGB", size, tuple(map(int, paper)))
    position = (margin - left, margin - top)
    ImageDraw.Draw(image).text(position, phrase, fill=tuple(map(int, ink)), font=font)
    return noisy(image, rng)


def noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image with normal noise of a drawn strength."""
    pixels = np.asarray(image, np.float32)
    pixels = pixels + rng.normal(0, rng.uniform(0, 12), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def page(background: Image.Image, lines: list[str], rng: np.random.Generator) -> Image.Image:
    """The lines one below the other on a background, each at a drawn indent, where they fit."""
    image = background.copy()
    top = int(rng.integers(5, 30))
    for phrase in lines:
        strip = line(phrase, rng)
        room = image.width - strip.width
        if room > 0 and top + strip.height < image.height:
            image.paste(strip, (int(rng.integers(room)), top))
            top += strip.height + int(rng.integers(8, 40))
    return image


def pixels(image: Image.Image) -> NDArray[np.float32]:
    """A picture as PP-OCR takes it: blue first, float32 [1, 3, h, w] in -1…1."""
    array = np.asarray(image.convert("RGB"), np.float32)[:, :, ::-1] / np.float32(127.5) - 1
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None])
