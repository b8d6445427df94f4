"""The model of a recipe as comparisons of converters use it, and samples for it.

Networks of drawn weights get the statistics of photographs, and are fed with them (see `settle`): as they are
drawn their activations grow or vanish, and their probabilities say nothing. All others get drawn inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools import models
from tools.bench import drawn
from tools.bench.judge import Feeds

VARIED = 2  # of the samples that judge, those of other shapes


@dataclass(frozen=True)
class Material:
    """A real model with samples.

    Attributes:
        name: of the recipe.
    """

    name: str

    @property
    def is_settled(self) -> bool:
        """Whether its weights are drawn and its statistics those of photographs."""
        return models.recipes()[self.name].seed is not None

    def model(self) -> Path:
        """The fp32 model.

        Raises:
            FetchError: it cannot be had.
        """
        if not self.is_settled:
            return models.path(self.name)
        from tools.bench.quantization.tasks.drawn import Drawn

        return Drawn(self.name).model()

    def calibration(self, count: int) -> Iterator[Feeds]:
        """Samples that converters may look at."""
        return self._photographs("calibration", count) or drawn.feeds(self.name, count, seed=1)

    def judged(self, count: int) -> Iterator[Feeds]:
        """Other samples, and some of other shapes where the model has dynamic ones."""
        if found := self._photographs("test", count):
            yield from found
            return
        yield from drawn.feeds(self.name, count - VARIED, seed=2)
        yield from drawn.feeds(self.name, VARIED, seed=3, varied=True)

    def _photographs(self, split: str, count: int) -> Iterator[Feeds] | None:
        if not self.is_settled:
            return None
        from tools.bench.quantization.tasks.drawn import Drawn

        return Drawn(self.name).stream(split, count)
