"""What a model's outputs are worth by the user's labels.

Integers are classes: the metric is the share of rows, in percent, whose largest score is that of the label
(top-1 accuracy); negative labels are skipped. Floats are targets: the metric is the negative mean squared
error; unless each of their rows is a single 1 among zeros, which is a class, too. Rows are taken in order, so
labels may be given per sample or per row of a sequence, whatever their shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import DataError
from graphopt.runtime.values import Tensor, Value

Array = NDArray[Any]

_BY_CHANCE = 0.01
_NO_BETTER = 0.9
_ENOUGH = 50  # labels, to tell who knows something from who guesses


@dataclass(frozen=True)
class Labels:
    """Labels of a number of samples.

    Attributes:
        values: integers or floats, [samples, ...] or, if a sample is a batch of B, [samples · B, ...].
        samples: how many samples they are for.
        source: the file, for messages.
    """

    values: Array
    samples: int
    source: str

    def __post_init__(self) -> None:
        if self.values.dtype.kind not in "iubf" or not np.isfinite(self.values).all():
            raise DataError(f"{self.source}: labels must be integers (classes) or finite floats (targets)")
        if not self.values.ndim or not self.samples or len(self.values) % self.samples:
            raise DataError(
                f"{self.source}: labels of shape {self.values.shape} do not fit {self.samples} samples"
            )
        if self.are_classes and not (self.values >= 0).any():
            raise DataError(f"{self.source}: all labels are negative, which skips them")

    @classmethod
    def read(cls, values: Array, samples: int, source: str) -> Labels:
        """Labels as they lie in a file: one-hot rows become the classes that they are.

        Raises:
            DataError: they are no numbers, or do not fit the samples.
        """
        classes = values.dtype.kind == "f" and _are_one_hot(values)
        return cls(values.argmax(axis=-1) if classes else values, samples, source)

    @property
    def are_classes(self) -> bool:
        """Whether they are classes rather than targets."""
        return self.values.dtype.kind in "iub"

    @property
    def name(self) -> str:
        """The metric's name."""
        return "top-1 accuracy (%)" if self.are_classes else "negative mean squared error"

    def merits(self, index: int, outputs: Mapping[str, Value]) -> Array:
        """What one sample's outputs are worth: float32 per label, 1 or 0 for classes, −(y − t)² for targets.

        Raises:
            DataError: no output has the labels' form.
        """
        each = len(self.values) // self.samples
        labels = self.values[index * each : (index + 1) * each]
        for value in outputs.values():
            merits = self._merits(labels, value.numpy()) if isinstance(value, Tensor) else None
            if merits is not None:
                return merits.astype(np.float32).reshape(-1)
        hint = "; classes are numbers, not rows of 0 and 1" if _are_one_hot(labels) else ""
        shapes = ", ".join(f"'{k}' {list(v.shape)}" for k, v in outputs.items() if isinstance(v, Tensor))
        raise DataError(
            f"{self.source}: labels {list(labels.shape)} of sample {index}, the largest {labels.max()},"
            f" fit no output ({shapes}){hint};"
            " judge with --eval module:function instead"
        )

    def metric(self, merits: Array) -> float:
        """The metric of the merits of all samples."""
        return float(np.mean(merits, dtype=np.float64)) * (100 if self.are_classes else 1)

    def check(self, merits: Array) -> None:
        """Refuse to judge by labels of which the original knows no more than who guesses.

        They are in another order, or count from 1, and hardly anything could be lost.

        Raises:
            DataError: guesses would give more in 99 of a hundred cases, or with 50 labels in one of ten.
        """
        if not self.are_classes:
            return
        from scipy.special import bdtr  # the binomial distribution; takes a while to import

        hits, count, kinds = int(merits.sum()), merits.size, len(np.unique(self.values[self.values >= 0]))
        least = _NO_BETTER if count >= _ENOUGH else _BY_CHANCE
        if kinds > 1 and bdtr(hits, count, 1 / kinds) < least:
            raise DataError(
                f"{self.source}: the original gives {hits:,} of the {count:,} labels, no more than guesses"
                " would; labels are numbers of classes from 0, in the order of the samples"
            )

    def compare(self, before: Array, after: Array) -> tuple[float, int | None, int | None]:
        """The standard error of the metric's difference, and how many classes were lost and gained.

        Both models saw the same labels, so that only labels on which they differ are uncertain. For classes
        half a label is added to each kind of outcome (Agresti and Min 2005): no difference is no proof.
        """
        change = after.astype(np.float64) - before
        if not self.are_classes:
            return float(change.std() / np.sqrt(change.size)), None, None
        lost, gained, count = int((change < 0).sum()), int((change > 0).sum()), change.size + 2
        variance = lost + gained + 1 - (lost - gained) ** 2 / count
        return 100 * float(np.sqrt(variance)) / count, lost, gained

    def _merits(self, labels: Array, output: Array) -> Array | None:
        """The merits if the output has the form for these labels."""
        if not self.are_classes:
            if output.dtype.kind != "f" or output.size != labels.size:
                return None
            error = np.subtract(output.reshape(-1), labels.reshape(-1), dtype=np.float64)
            return -np.square(error)
        decisions = _decisions(output, labels.shape, int(labels.max(initial=0)))
        if decisions is None:
            return None
        known = labels.reshape(-1) >= 0
        hits: Array = decisions.reshape(-1) == labels.reshape(-1)
        return hits[known]


def _are_one_hot(values: Array) -> bool:
    many = values.ndim > 1 and values.shape[-1] > 1
    return many and bool(np.isin(values, (0, 1)).all() and (values.sum(axis=-1) == 1).all())


def _decisions(output: Array, shape: tuple[int, ...], largest: int) -> Array | None:
    """The class of each label: what an output of integers says, or the largest along the axis of classes.

    That is the last axis, or the second one of an image [B, C, H, W] whose labels are [B, H, W]; it must have
    the ``largest`` label.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if output.dtype.kind in "iu":
        return output if output.size == count else None
    if output.dtype.kind != "f" or output.ndim < 1:
        return None
    if output.shape[-1] > max(largest, 1) and output.size == count * output.shape[-1]:
        return np.asarray(output.argmax(axis=-1))
    if output.ndim > 2 and output.shape[1] > max(largest, 1) and output.size == count * output.shape[1]:
        return np.asarray(output.argmax(axis=1))
    return None
