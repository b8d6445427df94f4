"""Whether a model with smaller weights keeps the budget, and is no slower than it was."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.errors import WorkerError
from graphopt.model import Model
from graphopt.precision import Task, Trial
from graphopt.proof.accuracy import Score
from graphopt_passes.quantize.draft import Draft


@dataclass(frozen=True)
class Verdict:
    """What is known of a model with smaller weights.

    Attributes:
        kept: whether it may be the result.
        reason: how the budget is kept, or why it may not be.
        score: on the samples that judge; ``None`` if it was not judged.
        notes: what was not checked, and why.
    """

    kept: bool
    reason: str
    score: Score | None = None
    notes: tuple[str, ...] = ()

    @property
    def unknown(self) -> bool:
        """Whether nothing is known but the structure."""
        return self.score is None


def judged(task: Task, model: Model) -> Verdict:
    """Score a model as far as the task allows and ONNX Runtime can.

    With ``--no-verify`` no model is run, and one that does not fit into the memory that ONNX Runtime may take
    cannot be: what was done is known then, but not what it costs.
    """
    if not task.options.verify:
        return Verdict(True, "judged by its structure only", notes=("not judged: --no-verify",))
    draft = Draft(task, model, frozenset())
    try:
        score = task.judge.score(draft.path)
        return Verdict(*task.budget.holds(score, task.judge.reference), score)
    except WorkerError as error:
        if error.reason != "memory":
            return Verdict(False, f"ONNX Runtime does not run the result: {error}")
        note = f"judged by its structure only, since it does not fit into memory: {error}"
        return Verdict(True, "judged by its structure only", notes=(note,))
    finally:
        draft.discard()


def timed(task: Task, model: Model) -> Trial | None:
    """A model beside what the stage was given, on all workloads; None if nothing can be measured here."""
    if not task.measured:
        return None
    task.progress("measuring")
    draft = Draft(task, model, frozenset())
    trial = task.compare(task.float_path, draft.path)
    draft.discard()
    return trial


def slower(task: Task, model: Model) -> str:
    """Measurements, if they say that a model is slower than the exact result on some workload; else empty."""
    trial = timed(task, model)
    return trial.summary() if trial is not None and trial.slower else ""
