"""What a task of the comparison is: a model, samples to calibrate on, and examples to judge by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools import models

Array = NDArray[Any]
Feeds = dict[str, Array]
Run = Callable[[Feeds], list[Array]]  # one run of a model: its outputs in order


@dataclass(frozen=True)
class Example:
    """What one prediction is made from, and the right answers if they are known."""

    feeds: Feeds
    labels: Array | None = None


@dataclass(frozen=True)
class Prediction:
    """Float outputs, of which the SQNR is taken (None: there are none), and the answers they amount to."""

    values: Array | None
    answers: Array


class Task(ABC):
    """One model with its data; everything is drawn from seeds or read from packages, so runs repeat.

    Attributes:
        name: of the model's recipe, and of the task.
        kind: tasks of one kind share a table.
        metric: what `score` measures, or empty where the right answers are not known.
        lower_is_better: whether a small metric is good.
        agreement_is: what `agreement` measures.
    """

    name: str
    kind: str
    metric: str = ""
    lower_is_better: bool = False
    agreement_is: str = "equal answers, %"

    @abstractmethod
    def calibration(self) -> Sequence[Feeds]:
        """Inputs of single calls; they share nothing with the examples."""

    @abstractmethod
    def examples(self) -> Sequence[Example]:
        """The held-out test."""

    def workloads(self) -> dict[str, Feeds]:
        """Inputs to time the model with, by a name such as `batch 1`."""
        return {"batch 1": self.calibration()[0]}

    def model(self) -> Path:
        """Path of the fp32 model."""
        return models.path(self.name)

    def predict(self, run: Run, example: Example) -> Prediction:
        """Run the model on one example; by default the answer is the class of the largest output."""
        values = run(example.feeds)[0]
        return Prediction(values, values.reshape(len(values), -1).argmax(1))

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> float:
        """The metric; by default the percentage of right answers."""
        labels = [example.labels for example in examples if example.labels is not None]
        return equal([prediction.answers for prediction in predictions], labels)

    def agreement(self, reference: Sequence[Prediction], found: Sequence[Prediction]) -> float:
        """How far predictions are those of the fp32 model; by default the percentage of equal answers."""
        return equal([one.answers for one in found], [one.answers for one in reference])


def equal(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """Percentage of entries that are equal."""
    return 100 * float(np.mean(np.concatenate(found) == np.concatenate(expected)))


def repeated(sample: Feeds, batch: int) -> Feeds:
    """A sample of one, `batch` times along the first axis of every input."""
    return {name: np.repeat(array, batch, axis=0) for name, array in sample.items()}
