"""What a user may ask of pruning: how much of a model goes, in which pattern, and what it is to gain.

All of it is done once, after training: schedules of TensorFlow's Model Optimization Toolkit are read, since
users know them, and mean the sparsity that they end with.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from typing import Any

from graphopt.errors import UsageError

AUTO = "auto"
OBJECTIVES = ("latency", "macs", "size")
SELECTIONS = ("obs", "lasso", "energy", "l2", "l1")
CLUSTERS = (4, 8)
CIRCULANTS = (2, 4, 8, 16)

_GROUP = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")
_NUMBER = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*")
_EXAMPLES = {
    "--channels": "0.5, 50% or auto",
    "--rank": "0.5, 50% or auto",
    "--sparsity": "0.5, 50%, auto, 2:4 or PolynomialDecay(0, 0.8, 0, 100)",
}
# Schedule → where its final sparsity stands among its arguments, and what the argument is called.
_SCHEDULES = {"ConstantSparsity": (0, "target_sparsity"), "PolynomialDecay": (1, "final_sparsity")}


@dataclass(frozen=True)
class Amount:
    """How much is to be removed.

    Attributes:
        share: between 0 and 1; None for as much as the accuracy budget allows.
        kept, group: so many of each group of so many weights stay (N:M sparsity); 0 if any may.
    """

    share: float | None
    kept: int = 0
    group: int = 0

    @classmethod
    def parse(cls, option: str, given: float | str) -> Amount:
        """Read ``0.5``, ``50%`` or ``auto``; for ``--sparsity`` also ``2:4`` and names of schedules.

        Raises:
            UsageError: it is none of these, or leaves nothing or everything.
        """
        text = str(given).strip()
        if text == AUTO:
            return cls(None)
        if option == "--sparsity" and (match := _GROUP.fullmatch(text)):
            return _group(int(match[1]), int(match[2]))
        share = _scheduled(text) if option == "--sparsity" and "(" in text else _share(text)
        if share is None or not 0 < share < 1:
            raise UsageError(f"{option} {text!r} is no share of a model; write {_EXAMPLES[option]}")
        return cls(share)

    def __str__(self) -> str:
        if self.group:
            return f"{self.kept}:{self.group}"
        return AUTO if self.share is None else f"{100 * self.share:g} %"


def _group(kept: int, group: int) -> Amount:
    if not 0 < kept < group:
        raise UsageError(
            f"--sparsity {kept}:{group} would keep {kept} of {group} weights; write N:M with N below M"
        )
    return Amount(1 - kept / group, kept, group)


def _share(text: str) -> float | None:
    match = _NUMBER.fullmatch(text)
    return None if match is None else float(match[1]) / (100 if match[2] else 1)


def _scheduled(text: str) -> float | None:
    """The sparsity that a schedule ends with, from its spelling as a call of constants."""
    try:
        call: Any = ast.parse(text, mode="eval").body
        place, keyword = _SCHEDULES[call.func.id]
        found = {one.arg: one.value for one in call.keywords}.get(keyword)
        number = float(ast.literal_eval(call.args[place] if found is None else found))
    except (SyntaxError, AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None
    return None if math.isnan(number) else number
