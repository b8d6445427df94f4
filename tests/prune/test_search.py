"""The contract of pruning: the share that was asked for, the most that keeps the budget, or nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from graphopt.precision import Outcome
from graphopt.proof.accuracy import Score
from graphopt.report import PrunedLayer
from graphopt_passes.prune import search
from graphopt_passes.prune.search import Attempt, searched
from graphopt_passes.weights.judging import Verdict

SCORE = Score(1, None, None, ())


@dataclass
class Bench:
    """A technique whose results keep the budget up to a share, and take so long."""

    holds_up_to: float
    verdicts: tuple[str, ...] = ("faster",)
    least: float = 0.0
    tried: list[float] = field(default_factory=list)

    def make(self, share: float) -> Attempt:
        self.tried.append(share)
        if share < self.least:
            return Attempt(None, 0.0, (), "so little cannot be removed")
        model: Any = SimpleNamespace(share=share)
        return Attempt(
            model, share, (PrunedLayer("w", "Conv", "rank", f"{share:.3f}"),), f"{share:.3f} of it"
        )

    def judged(self, task: Any, model: Any) -> Verdict:
        return Verdict(model.share <= self.holds_up_to, f"lost {model.share:.3f}", SCORE)

    def task(self, *, measured: bool = False) -> Any:
        comparisons = [SimpleNamespace(verdict=one) for one in self.verdicts]
        pays = "faster" in self.verdicts and "slower" not in self.verdicts
        trial = SimpleNamespace(comparisons=comparisons, pays=pays, summary=lambda: "1 ms → 2 ms")
        return SimpleNamespace(
            measured=measured,
            compare=lambda *_: trial,
            float_path="before.onnx",
            progress=lambda *_: None,
            options=SimpleNamespace(data="samples"),
            write=lambda _: SimpleNamespace(unlink=lambda: None),
        )


def share_of(outcome: Outcome) -> float:
    model: Any = outcome.model
    assert model is not None
    return float(model.share)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = Bench(1.0)
    monkeypatch.setattr(search, "judged", found.judged)
    return found


def test_what_was_asked_for_is_done_if_it_keeps_the_budget(bench: Bench) -> None:
    outcome = searched(bench.task(), bench.make, 0.5, saves_time=True)
    assert outcome.model is not None and bench.tried == [0.5]
    assert outcome.score is SCORE and outcome.reason == "lost 0.500"
    assert outcome.notes == ("removed 0.500 of it",)


def test_else_the_most_that_keeps_it(bench: Bench) -> None:
    bench.holds_up_to = 0.3
    outcome = searched(bench.task(), bench.make, 0.8, saves_time=True)
    assert 0.3 - 0.8 / 2**search.STEPS <= share_of(outcome) <= 0.3
    assert "the most that keeps the budget" in outcome.notes[0]
    assert len(bench.tried) == 1 + search.STEPS


def test_if_no_share_keeps_it_there_is_no_result_but_a_reason(bench: Bench) -> None:
    bench.holds_up_to = 0.0
    outcome = searched(bench.task(), bench.make, 0.8, saves_time=True)
    assert outcome.model is None and "no share of it keeps the budget: lost 0.800" in outcome.reason
    assert outcome.pruned and outcome.score is SCORE


def test_shares_that_are_too_small_end_the_search_from_below(bench: Bench) -> None:
    bench.holds_up_to, bench.least = 0.5, 0.4
    outcome = searched(bench.task(), bench.make, 1.0, saves_time=True)
    assert 0.4 <= share_of(outcome) <= 0.5


def test_nothing_to_remove_is_a_reason(bench: Bench) -> None:
    bench.least = 2.0
    outcome = searched(bench.task(), bench.make, 0.5, saves_time=True)
    assert outcome.model is None and outcome.reason == "so little cannot be removed"


@pytest.mark.parametrize(
    ("verdicts", "saves_time", "kept"),
    [
        (("faster", "same"), True, True),
        (("same", "same"), True, False),
        (("same", "same"), False, True),
        (("faster", "slower"), True, False),
        (("faster", "slower"), False, False),
    ],
)
def test_what_promises_speed_must_be_measured_to_be_faster(
    bench: Bench, verdicts: tuple[str, ...], saves_time: bool, kept: bool
) -> None:
    bench.verdicts = verdicts
    outcome = searched(bench.task(measured=True), bench.make, 0.5, saves_time=saves_time)
    assert (outcome.model is not None) == kept
    if not kept:
        assert "1 ms → 2 ms" in outcome.reason


def test_without_data_it_is_said(bench: Bench) -> None:
    task = bench.task()
    task.options.data = None
    outcome = searched(task, bench.make, 0.5, saves_time=True)
    assert any("pruned without data" in note for note in outcome.notes)
