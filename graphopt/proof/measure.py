"""Latency, load time and memory of two models, measured so that a noisy machine fakes neither gain nor loss.

Runs of both alternate in one process; each round gives one ratio, so that what slows the machine slows both.
The verdict needs the median ratio to differ from one by more than its uncertainty and a least effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from graphopt.runtime.values import Feeds, Tensor, Value
from graphopt.runtime.worker import Worker
from graphopt.target import CPU, Target

Change = Literal["faster", "same", "slower"]

MOST_ROUNDS = 2000
BUDGET_S = 2.0
# A median within this of 1 is no difference, however many rounds say so: a user could not tell.
LEAST_EFFECT = 0.02
# Below this the sign test cannot reach 99 %.
LEAST_ROUNDS = 8
_ERROR = 0.01
_NOISY = 0.25  # of the ratio: then a verdict means little
_LOADING_S = 0.3
_MOST_LOADS = 10
_BLOCKS = 24


@dataclass(frozen=True)
class Cost:
    """What running one model costs.

    Attributes:
        median_ms, low_ms, high_ms: milliseconds per run, the median and the quartiles.
        load_s: seconds to make the session.
        peak_bytes: resident memory that the session and one run add; None if not measured.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    load_s: float
    peak_bytes: int | None = None

    @classmethod
    def of(cls, seconds: Sequence[float], load_s: float, peak_bytes: int | None = None) -> Cost:
        """Summarize the seconds of single runs."""
        low, median, high = np.percentile(np.asarray(seconds) * 1e3, [25, 50, 75])
        return cls(float(median), float(low), float(high), load_s, peak_bytes)


@dataclass(frozen=True)
class Comparison:
    """Two models at one workload.

    Attributes:
        before, after: what each costs.
        ratio: median over rounds of before / after, paired, which need not be the ratio of the medians;
            above 1 the second model is faster.
        noise: half the width of the ratio's 99 % confidence interval.
        verdict: whether the second model is ``faster``, ``slower`` or the ``same`` beyond that noise.
        rounds: how many pairs of runs were made.
        workload: the shapes that were fed, in words.
        threads: ONNX Runtime's intra-op threads; 0 is its default.
        target: where it ran.
    """

    before: Cost
    after: Cost
    ratio: float
    noise: float
    verdict: Change
    rounds: int
    workload: str
    threads: int
    target: str

    @property
    def before_ms(self) -> float:
        """Median milliseconds of the first model."""
        return self.before.median_ms

    @property
    def after_ms(self) -> float:
        """Median milliseconds of the second model."""
        return self.after.median_ms

    @property
    def words(self) -> str:
        """The verdict, and a warning where the noise is so large that it says little."""
        told = "no difference beyond noise" if self.verdict == "same" else self.verdict
        return f"{told}; noisy, the machine may be busy" if self.noise > _NOISY * self.ratio else told

    def summary(self) -> str:
        """One line: ``1.24 ms → 1.02 ms, 1.21x paired ± 0.03 (faster) at x 1x3, default threads, cpu``."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else "default threads"
        return (
            f"{self.before_ms:.3g} ms → {self.after_ms:.3g} ms, {self.ratio:.2f}x paired ± {self.noise:.2g}"
            f" ({self.words}) at {self.workload}, {threads}, {self.target}"
        )


def compare(  # noqa: PLR0913 - the options of a measurement are given by keyword
    before: Path,
    after: Path,
    sample: Feeds,
    *,
    worker: Worker,
    target: Target = CPU,
    threads: int = 0,
    budget_s: float = BUDGET_S,
    memory: bool = False,
) -> Comparison:
    """Measure two models in turns on one sample, as the user will run them.

    Args:
        before, after: the files of the models.
        sample: what to feed.
        worker: runs the models.
        target: execution provider and optimization level.
        threads: intra-op threads; 0 is ONNX Runtime's default, one per core.
        budget_s: seconds that the runs may take.
        memory: also measure the peak memory of each, in a process of its own.

    Raises:
        WorkerError: one of the models does not run.
    """
    place = _Place(worker, target, threads)
    first = place.trial((before, after), sample, budget_s / 2)
    # Where a session's memory lies can cost some percent: sessions made anew, in the other order, tell.
    second = place.trial((after, before), sample, budget_s / 2)[::-1]
    seconds = [a.seconds + b.seconds for a, b in zip(first, second, strict=True)]
    loads = place.load_seconds(
        (before, after), [(a.load_s, b.load_s) for a, b in zip(first, second, strict=True)]
    )
    peaks = [place.peak_memory(path, sample) if memory else None for path in (before, after)]
    one, other = (Cost.of(*facts) for facts in zip(seconds, loads, peaks, strict=True))
    ratio, noise, verdict = judge(*seconds)
    rounds = len(seconds[0])
    return Comparison(one, other, ratio, noise, verdict, rounds, describe(sample), threads, target.name)


@dataclass(frozen=True)
class _Timing:
    """Seconds of each run of a session, and of making it."""

    seconds: list[float]
    load_s: float


@dataclass(frozen=True)
class _Place:
    """Where models are measured."""

    worker: Worker
    target: Target
    threads: int

    def trial(self, models: Sequence[Path], sample: Feeds, budget_s: float) -> list[_Timing]:
        """Interleaved timings of fresh sessions, made in the given order."""
        sessions = [self.worker.open(model, self.target, self.threads) for model in models]
        try:
            timings = self.worker.time(sessions, sample, MOST_ROUNDS, budget_s)
        finally:
            for session in sessions:
                self.worker.close(session)
        pairs = zip(timings, sessions, strict=True)
        return [_Timing(seconds, session.info.seconds) for seconds, session in pairs]

    def load_seconds(self, models: Sequence[Path], known: Sequence[Sequence[float]]) -> list[float]:
        """The least seconds of making a session of each model; short ones are made again, in turns."""
        seconds = [list(one) for one in known]
        spent = 0.0
        while spent < _LOADING_S and len(seconds[0]) < _MOST_LOADS:
            for model, one in zip(models, seconds, strict=True):
                session = self.worker.open(model, self.target, self.threads)
                self.worker.close(session)
                one.append(session.info.seconds)
                spent += session.info.seconds
        return [min(one) for one in seconds]

    def peak_memory(self, model: Path, sample: Feeds) -> int:
        """Bytes of resident memory that a session and one run add to a process of their own."""
        with self.worker.fresh() as alone:
            alone.providers()  # ONNX Runtime itself is imported by now
            empty = alone.peak_memory()
            alone.run(alone.open(model, self.target, self.threads), sample)
            return alone.peak_memory() - empty


def judge(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, Change]:
    """The median of the paired ratios before / after, its uncertainty, and what follows.

    Neighbouring rounds share what disturbs them, so the ratios are cut into up to 24 runs of rounds whose
    medians count as one observation each. The interval is that of the sign test (order statistics of the
    observations), which needs no distribution; fewer than eight observations decide nothing.
    """
    ratios = np.asarray(before) / np.asarray(after)
    ratio = float(np.median(ratios))
    blocks = np.array_split(ratios, min(len(ratios), _BLOCKS))
    observed = np.sort([np.median(block) for block in blocks])
    left_out = _left_out(len(observed))
    low, high = float(observed[left_out]), float(observed[-1 - left_out])
    if len(observed) < LEAST_ROUNDS:
        return ratio, (high - low) / 2, "same"
    if low > 1 + LEAST_EFFECT:
        return ratio, (high - low) / 2, "faster"
    return ratio, (high - low) / 2, "slower" if high < 1 - LEAST_EFFECT else "same"


def _left_out(count: int) -> int:
    """How many observations may lie beyond each end of a 99 % interval for the median."""
    tail, term, left_out = 0.0, 0.5**count, -1
    while tail + term <= _ERROR / 2:
        left_out += 1
        tail += term
        term *= (count - left_out) / (left_out + 1)
    return max(left_out, 0)


def describe(sample: Mapping[str, Value]) -> str:
    """The shapes of a sample in words: ``x 1x3x224x224, sr scalar``."""
    return ", ".join(f"{name} {_shape(value)}" for name, value in sample.items()) or "no inputs"


def _shape(value: Value) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape)) or "scalar"
    return "empty" if value is None else f"of {len(value)}"
