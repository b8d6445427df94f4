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
from numpy.typing import NDArray

from graphopt.target import CPU, Target
from graphopt.values import Feeds, Tensor, Value
from graphopt.worker import Session, Worker

Change = Literal["faster", "same", "slower"]

MOST_ROUNDS = 2000
BUDGET_S = 2.0
# A median within this of 1 is no difference, however many rounds say so: a user could not tell.
LEAST_EFFECT = 0.02
_CONFIDENCE = 0.99
_RESAMPLES = 1000


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
        ratio: median over rounds of before / after; above 1 the second model is faster.
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

    def summary(self) -> str:
        """One line: ``1.24 ms → 1.02 ms, 1.21x ± 0.03 (faster) at x 1x3x224x224, default threads, cpu``."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else "default threads"
        return (
            f"{self.before_ms:.3g} ms → {self.after_ms:.3g} ms, {self.ratio:.2f}x ± {self.noise:.2g}"
            f" ({self.verdict}) at {self.workload}, {threads}, {self.target}"
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
    sessions = [worker.open(path, target, threads) for path in (before, after)]
    try:
        first, second = worker.time(sessions, sample, MOST_ROUNDS, budget_s)
    finally:
        for session in sessions:
            worker.close(session)
    ratio, noise, verdict = judge(first, second)
    peaks = [peak_memory(session, sample, worker) if memory else None for session in sessions]
    return Comparison(
        Cost.of(first, sessions[0].info.seconds, peaks[0]),
        Cost.of(second, sessions[1].info.seconds, peaks[1]),
        ratio,
        noise,
        verdict,
        rounds=len(first),
        workload=describe(sample),
        threads=threads,
        target=target.name,
    )


def judge(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, Change]:
    """The median of the paired ratios before / after, its uncertainty, and what follows.

    The interval is the percentile bootstrap of the median (Efron 1979), at 99 %.
    """
    ratios = np.asarray(before) / np.asarray(after)
    low, high = _interval(ratios)
    ratio = float(np.median(ratios))
    if low > 1 + LEAST_EFFECT:
        verdict: Change = "faster"
    elif high < 1 - LEAST_EFFECT:
        verdict = "slower"
    else:
        verdict = "same"
    return ratio, (high - low) / 2, verdict


def _interval(ratios: NDArray[np.float64]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (_RESAMPLES, len(ratios))), axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return float(low), float(high)


def peak_memory(session: Session, sample: Feeds, worker: Worker) -> int:
    """Bytes of resident memory that making a session like this one and running it once adds to a process.

    Raises:
        WorkerError: the model does not run.
    """
    with worker.fresh() as alone:
        alone.providers()  # ONNX Runtime itself is imported by now
        empty = alone.peak_memory()
        alone.run(alone.open(session.model, session.target, session.threads), sample)
        return alone.peak_memory() - empty


def describe(sample: Mapping[str, Value]) -> str:
    """The shapes of a sample in words: ``x 1x3x224x224, sr scalar``."""
    return ", ".join(f"{name} {_shape(value)}" for name, value in sample.items()) or "no inputs"


def _shape(value: Value) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape)) or "scalar"
    return "empty" if value is None else f"of {len(value)}"
