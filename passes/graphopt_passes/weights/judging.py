"""Whether a model with smaller weights keeps the budget, and is no slower than it was."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.errors import WorkerError
from graphopt.model import Model
from graphopt.precision import Task
from graphopt.proof.accuracy import Score
from graphopt_passes.quantize.draft import Draft

_SKIPPED = "structure only: --no-verify"


@dataclass(frozen=True)
class Verdict:
    """What is known of a model with smaller weights.

    Attributes:
        kept: whether it may be the result.
        reason: how the budget is kept, or why it may not be.
        score: on the samples that judge; ``None`` if it was not judged.
        slower: measurements, if these say that it is slower than the exact result; else empty.
        notes: what was not checked, and why.
    """

    kept: bool
    reason: str
    score: Score | None = None
    slower: str = ""
    notes: tuple[str, ...] = ()


def judged(task: Task, model: Model) -> Verdict:
    """Score a model and measure it, as far as the task allows and ONNX Runtime can.

    A model that does not fit into the memory that ONNX Runtime may take is judged by its structure only, and
    so is any with ``--no-verify``: what was done is known, but not what it costs.
    """
    if not task.options.verify:
        return Verdict(True, _SKIPPED)
    draft = Draft(task, model, frozenset())
    try:
        score = task.judge.score(draft.path)
        kept, reason = task.options.budget.holds(score, task.judge.reference)
        slower = _slower(task, draft) if kept and task.measured else ""
    except WorkerError as error:
        if error.reason != "memory":
            raise
        note = f"judged by its structure only, since it does not fit into memory: {error}"
        return Verdict(True, "structure only", notes=(note,))
    finally:
        draft.discard()
    if slower:
        return Verdict(False, f"it is slower: {slower}", score, slower)
    return Verdict(kept, reason, score)


def _slower(task: Task, draft: Draft) -> str:
    trial = task.compare(task.float_path, draft.path)
    return trial.summary() if any(found.verdict == "slower" for found in trial.comparisons) else ""
