"""The contract of all pruning: the most of what was asked for that keeps the budget, or nothing and why.

A stage makes an attempt from a share to remove. The share that was asked for is tried first; where it loses
too much, bisection finds the largest that does not, as more removed is taken to lose more. What is to save
time must be measured to do so, or it is not the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphopt.model import Model
from graphopt.precision import Outcome, Task, Trial
from graphopt.report import PrunedLayer
from graphopt_passes.weights.judging import Verdict, judged, timed

_GRAIN = 0.01  # of a share, which nobody misses
STEPS = 5  # halvings of the share between what keeps the budget and what does not


@dataclass(frozen=True)
class Attempt:
    """A model from which something was removed.

    Attributes:
        model: the result; None if nothing can be removed.
        share: how much was, between 0 and 1, in the unit of the stage.
        layers: the ledger: what was done to each layer, and why not to others.
        told: what was done, in words, such as ``41 % of the MACs``; why nothing, if ``model`` is None.
        notes: what else the user should know.
    """

    model: Model | None
    share: float
    layers: tuple[PrunedLayer, ...]
    told: str
    notes: tuple[str, ...] = ()


Make = Callable[[float], Attempt]


def searched(task: Task, make: Make, asked: float, *, saves_time: bool) -> Outcome:
    """The outcome of a stage.

    Args:
        task: what to work with, and the budget.
        make: removes a share, above 0 and at most 1.
        asked: the largest share to try.
        saves_time: whether a result that is not faster is none, as far as that can be measured.
    """
    found = _tried(task, make(asked))
    if found.attempt.model is None:
        return Outcome(None, found.attempt.told, pruned=found.attempt.layers)
    if not found.verdict.kept:
        smaller = _smaller(task, make, found.attempt.share)
        if smaller is None:
            reason = f"no share of it keeps the budget: {found.verdict.reason}"
            return Outcome(None, reason, found.verdict.score, pruned=found.attempt.layers)
        return _timed(task, smaller, "the most that keeps the budget", saves_time=saves_time)
    less = found.attempt.share < asked - _GRAIN
    return _timed(task, found, "the most that can be" if less else "", saves_time=saves_time)


@dataclass(frozen=True)
class _Tried:
    attempt: Attempt
    verdict: Verdict


def _tried(task: Task, attempt: Attempt) -> _Tried:
    if attempt.model is None:
        return _Tried(attempt, Verdict(False, attempt.told))
    return _Tried(attempt, judged(task, attempt.model))


def _smaller(task: Task, make: Make, broken: float) -> _Tried | None:
    """What removes most of all that keep the budget, by bisection below a share that does not."""
    low, high, best = 0.0, broken, None
    for step in range(STEPS):
        middle = (low + high) / 2
        task.progress(f"trying a share of {middle:.0%}", step, STEPS)
        found = _tried(task, make(middle))
        if found.attempt.model is not None and found.verdict.kept:
            best, low = found, middle
        elif found.attempt.model is None:  # so little cannot be removed
            low = middle
        else:
            high = middle
    return best


def _timed(task: Task, found: _Tried, limit: str, *, saves_time: bool) -> Outcome:
    """The outcome of what keeps the budget, once it is measured."""
    attempt, verdict = found.attempt, found.verdict
    assert attempt.model is not None
    trial = None if verdict.unknown else timed(task, attempt.model)
    if trial is not None and (slow := _too_slow(trial, saves_time=saves_time)):
        return Outcome(None, slow, verdict.score, pruned=attempt.layers)
    told = f"removed {attempt.told}{f', {limit}' if limit else ''}"
    gained = [] if trial is None or not saves_time else [f"by this alone: {trial.summary()}"]
    notes = (told, *gained, *attempt.notes, *verdict.notes, *_blind(task))
    return Outcome(attempt.model, verdict.reason, verdict.score, notes=notes, pruned=attempt.layers)


def _too_slow(trial: Trial, *, saves_time: bool) -> str:
    """Why its times speak against a model; empty if they do not."""
    if any(one.verdict == "slower" for one in trial.comparisons):
        return f"it is slower: {trial.summary()}"
    if saves_time and not trial.pays:
        return f"it is not faster: {trial.summary()}; --objective macs or size keeps it all the same"
    return ""


def _blind(task: Task) -> list[str]:
    """Says so if nothing was fitted to the user's data."""
    if task.options.data is not None:
        return []
    return ["pruned without data: chosen and fitted by the weights alone, and judged on drawn samples"]
