"""What may be asked of pruning, and what is refused with a way out."""

from __future__ import annotations

from typing import Any

import pytest

from graphopt.errors import UsageError
from graphopt.options import Options
from graphopt.pruning import Amount
from graphopt.stages import stages

READ = {
    ("--channels", 0.5): (0.5, 0, 0),
    ("--channels", "50%"): (0.5, 0, 0),
    ("--rank", "auto"): (None, 0, 0),
    ("--sparsity", "2:4"): (0.5, 2, 4),
    ("--sparsity", "1:4"): (0.75, 1, 4),
    ("--sparsity", "ConstantSparsity(0.6, 0)"): (0.6, 0, 0),
    ("--sparsity", "PolynomialDecay(0.1, 0.8, 0, 1000)"): (0.8, 0, 0),
    ("--sparsity", "PolynomialDecay(initial_sparsity=0.1, final_sparsity=0.7, begin_step=0)"): (0.7, 0, 0),
}
REFUSED = [
    ("--channels", "2:4"),
    ("--channels", "much"),
    ("--channels", 0),
    ("--channels", 1.0),
    ("--channels", "-0.5"),
    ("--sparsity", "120%"),
    ("--sparsity", "4:4"),
    ("--sparsity", "0:4"),
    ("--sparsity", "ExponentialDecay(0.5)"),
    ("--sparsity", "PolynomialDecay(0.5)"),
    ("--sparsity", "PolynomialDecay(0, open, 0, 100)"),
]


@pytest.mark.parametrize(("given", "expected"), READ.items(), ids=str)
def test_amounts_are_read(given: tuple[str, float | str], expected: tuple[float | None, int, int]) -> None:
    amount = Amount.parse(*given)
    assert (amount.share, amount.kept, amount.group) == expected


@pytest.mark.parametrize(("option", "given"), REFUSED)
def test_what_is_no_amount_is_refused(option: str, given: float | str) -> None:
    with pytest.raises(UsageError, match=option):
        Amount.parse(option, given)


CONFLICTS = {
    "unknown objective": ({"rank": 0.5, "objective": "beauty"}, "latency, macs, size"),
    "unknown selection": ({"rank": 0.5, "select": "l3"}, "obs, lasso"),
    "a codebook of 3 bits": ({"cluster": 3}, "4, 8"),
    "two ways to store": ({"cluster": 4, "precision": "int8-dynamic"}, "leave one out"),
    "an objective of nothing": ({"objective": "macs"}, "--objective needs"),
    "no fitting of nothing": ({"refit": False}, "--no-refit needs"),
    "a budget of nothing": ({"max_drop": "1%"}, "--max-drop needs"),
    "a way to choose that rank has no use for": ({"rank": 0.5, "select": "l1"}, "--select needs"),
    "a way to choose channels alone": (
        {"sparsity": 0.5, "select": "lasso"},
        "needs --channels",
    ),
    "an objective that zeros do not serve": ({"sparsity": 0.5, "objective": "macs"}, "--objective needs"),
    "a budget that is not judged": ({"rank": 0.5, "max_drop": "1%", "verify": False}, "--no-verify"),
    "as much as nobody judges": ({"sparsity": "auto", "verify": False}, "--sparsity auto"),
    "an amount of no metric": ({"rank": 0.5, "max_drop": "0.5"}, "there is none"),
}


@pytest.mark.parametrize(("options", "told"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_options_that_make_no_sense(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Options(**options)


def test_a_share_has_no_budget_unless_one_is_given() -> None:
    assert [stage.budget.is_bounded for stage in stages(Options(rank=0.5))] == [False]
    assert [stage.budget.is_bounded for stage in stages(Options(rank="auto"))] == [True]
    assert [stage.budget.is_bounded for stage in stages(Options(rank=0.5, max_drop="1%"))] == [True]


def test_stages_share_a_budget() -> None:
    found = stages(Options(rank=0.5, cluster=4, max_drop="1%"))
    assert [str(stage.budget) for stage in found] == ["0.5 %", "1 %"]
    found = stages(Options(rank=0.5, precision="int8-dynamic", max_drop="1%"))
    assert [str(stage.budget) for stage in found] == ["0.5 %", "1 %"]


def test_samples_are_kept_to_fit_to_only_if_there_are_any() -> None:
    assert not Options(rank=0.5).calibrates
    assert Options(rank=0.5, data="synthetic").calibrates
