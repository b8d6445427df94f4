"""PP-OCRv4's detector on rendered pages: text on photographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tools.bench.quantization import photographs, text
from tools.bench.quantization.scoring import intersection_over_union
from tools.bench.quantization.task import Example, Feeds, Prediction, Run, Task, repeated

SIZES = [(640, 480), (480, 640), (512, 512), (736, 416)]
THRESHOLD = 0.3  # as PP-OCR has it


class TextPages(Task):
    """The answer is the set of pixels that are text; pages have different shapes."""

    name = "ppocrv4_det"
    kind = "Reading text"
    agreement_is = "intersection over union of the text found, %"

    def calibration(self) -> Sequence[Feeds]:
        """32 pages."""
        return pages("calibration", 32, seed=1)

    def examples(self) -> Sequence[Example]:
        """32 pages of other articles on other photographs."""
        return [Example(page) for page in pages("test", 32, seed=2)]

    def workloads(self) -> dict[str, Feeds]:
        """One page, and 32 small ones."""
        page = self.calibration()[0]
        small = {"x": np.ascontiguousarray(page["x"][:, :, :160, :160])}
        return {"batch 1": page, "batch 32": repeated(small, 32)}

    def predict(self, run: Run, example: Example) -> Prediction:
        """Probabilities of text [1, 1, h, w], and where they exceed the threshold."""
        values = run(example.feeds)[0]
        return Prediction(values, (values > THRESHOLD).ravel())

    def agreement(self, reference: Sequence[Prediction], found: Sequence[Prediction]) -> float:
        """Intersection over union, over all pages."""
        expected = np.concatenate([one.answers for one in reference])
        answered = np.concatenate([one.answers for one in found])
        return intersection_over_union(answered, expected)


def pages(split: str, count: int, seed: int) -> list[Feeds]:
    """Pictures of pages."""
    rng = np.random.default_rng(seed)
    made: list[Feeds] = []
    for index in range(count):
        (background,) = photographs.crops(split, 1, *SIZES[index % len(SIZES)], seed=seed * 1000 + index)
        shown = text.page(background, text.phrases(split, 12, longest=4, rng=rng), rng)
        made.append({"x": text.pixels(shown)})
    return made


def task(name: str) -> Task:
    """The task."""
    return TextPages()
