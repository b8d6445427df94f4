"""The character-level GPT on text that it did not learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tools.bench.quantization.task import Array, Example, Feeds, Prediction, Run, Task
from tools.train import text

LENGTH = 128
BATCH = 16


class Language(Task):
    """Which character comes next? Perplexity is exp of the mean negative log-likelihood; lower is better."""

    name = "chargpt"
    kind = "Language"
    metric = "perplexity per character"
    lower_is_better = True
    agreement_is = "equal next characters, %"

    def calibration(self) -> Sequence[Feeds]:
        """64 pieces of the text that was learned."""
        return [{"tokens": piece[None]} for piece in text.windows("train", 64, LENGTH)]

    def examples(self) -> Sequence[Example]:
        """512 pieces of the text that was held out, in batches; labels are the characters that follow."""
        pieces = text.windows("test", 512, LENGTH + 1)
        batches = [pieces[start : start + BATCH] for start in range(0, len(pieces), BATCH)]
        return [Example({"tokens": np.ascontiguousarray(part[:, :-1])}, part[:, 1:]) for part in batches]

    def workloads(self) -> dict[str, Feeds]:
        """A full context, and the first two characters, where weights are read for little arithmetic."""
        piece = text.windows("train", 1, LENGTH)
        return {"batch 1": {"tokens": piece}, "two characters": {"tokens": piece[:, :2].copy()}}

    def predict(self, run: Run, example: Example) -> Prediction:
        """Logits [batch, length, characters], and the likeliest characters."""
        values = run(example.feeds)[0]
        return Prediction(values, values.argmax(-1).ravel())

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> float:
        """Perplexity."""
        costs = [nats(one.values, example.labels) for one, example in zip(predictions, examples, strict=True)]
        return float(np.exp(np.concatenate(costs).mean()))


def nats(logits: Array | None, labels: Array | None) -> Array:
    """Negative log-likelihood of each label under the softmax of [batch, length, characters]."""
    assert logits is not None and labels is not None
    wide = logits.astype(np.float64).reshape(-1, logits.shape[-1])
    shifted = wide - wide.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(shifted, labels.reshape(-1, 1), axis=1)[:, 0]
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - chosen)


def task(name: str) -> Task:
    """The task."""
    return Language()
