"""What comparing two models says: of each output at its worst, and of the candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.proof.tolerance import Judgement, distances, numbers
from graphopt.runtime.values import FLOATING, Tensor

Status = Literal["verified", "not verified", "structural only", "failed"]


@dataclass(frozen=True)
class OutputError:
    """How one output compares, at its worst over all samples.

    Attributes:
        name: the output; ``y[0]`` is the first item of a sequence.
        error: largest absolute error relative to its tolerance, as an absolute number.
        tolerance: the rounding tolerance of that element.
        sqnr_db: signal to noise ratio in dB, the lowest of all samples; None if there is no noise.
        agreement: share of rows with the same argmax along the last axis; None without such an axis.
        wrong: why the output is wrong, empty if it is not.
    """

    name: str
    error: float = 0.0
    tolerance: float = 0.0
    sqnr_db: float | None = None
    agreement: float | None = None
    wrong: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison.

    Attributes:
        ok: whether nothing speaks against the candidate.
        status: ``verified``; ``not verified`` (no evidence could be had); ``structural only`` (ONNX Runtime
            cannot run the original); ``failed``.
        reason: why it failed, or why there is no evidence.
        evidence: the samples, in words.
        outputs: every output's error.
        notes: what was not judged, and why.
        first_bad: number of the first failing sample.
    """

    ok: bool
    status: Status
    reason: str = ""
    evidence: str = ""
    outputs: tuple[OutputError, ...] = ()
    notes: tuple[str, ...] = ()
    first_bad: int | None = None

    def summary(self) -> str:
        """One line, such as ``verified: 8 synthetic samples, max error 3.1e-07 (tolerance 1.2e-06)``."""
        if self.status != "verified":
            return f"{self.status}: {self.reason}"
        worst = max(self.outputs, key=lambda output: output.error / (output.tolerance or 1), default=None)
        told = f"max error {worst.error:.2g} (tolerance {worst.tolerance:.2g})" if worst else "no outputs"
        return "; ".join([f"verified: {self.evidence}, {told}", *self.notes])


def worse(known: OutputError, judgement: Judgement, expected: Tensor, found: Tensor) -> OutputError:
    """The worse of what is known of an output and of one more sample."""
    if expected.shape != found.shape or expected.elem_type != found.elem_type:
        return OutputError(known.name, wrong=judgement.wrong)
    worse = judgement.error * (known.tolerance or 1) >= known.error * (judgement.tolerance or 1)
    error, tolerance = (judgement.error, judgement.tolerance) if worse else (known.error, known.tolerance)
    sqnr = min((x for x in (known.sqnr_db, _sqnr_db(expected, found)) if x is not None), default=None)
    agreement = min(
        (x for x in (known.agreement, _agreement(expected, found)) if x is not None), default=None
    )
    return OutputError(known.name, error, tolerance, sqnr, agreement, known.wrong or judgement.wrong)


def _sqnr_db(expected: Tensor, found: Tensor) -> float | None:
    """10 log₁₀(Σ r² / Σ (r − c)²) over finite elements; None without noise or signal."""
    if expected.elem_type not in FLOATING:
        return None
    reference = numbers(expected)
    distance, _ = distances(reference, numbers(found))
    size = np.abs(reference[np.isfinite(reference)])
    signal, noise = float(np.square(size).sum()), float(np.square(distance).sum())
    return 10 * float(np.log10(signal / noise)) if signal and noise else None


def _agreement(expected: Tensor, found: Tensor) -> float | None:
    if expected.elem_type not in FLOATING or len(expected.shape) < 2 or expected.shape[-1] < 2:
        return None
    rows = [
        numbers(tensor).real.reshape(-1, expected.shape[-1]).argmax(axis=1) for tensor in (expected, found)
    ]
    return float((rows[0] == rows[1]).mean()) if rows[0].size else None
