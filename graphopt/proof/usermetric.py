"""A metric that the user's own function computes, by running the model as often as it likes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.errors import DataError, GraphoptError
from graphopt.runtime.values import Feeds, Tensor, Value, keep
from graphopt.samples.inputs import InputSpec, check

Run = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class UserMetric:
    """A function that gets ``run`` and returns a number, higher is better.

    ``run(feeds)`` takes a dict of arrays by input name and gives a dict of arrays by output name (sequences
    are lists of arrays).

    Attributes:
        function: the function.
        name: how the user calls it.
        specs: the model's inputs.
    """

    function: Callable[[Run], Any]
    name: str
    specs: Sequence[InputSpec]

    def measure(self, run: Callable[[Feeds], dict[str, Value]]) -> float:
        """The function's number for the model that ``run`` runs.

        Raises:
            DataError: the function fails, feeds what does not fit the model, or returns no finite number.
        """

        def run_arrays(feeds: Mapping[str, Any]) -> dict[str, Any]:
            values = keep(run(check(self.specs, feeds, f"--eval {self.name}")))
            return {name: _plain(value) for name, value in values.items()}

        try:
            found = self.function(run_arrays)
        except GraphoptError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(f"--eval {self.name} failed with {type(error).__name__}: {error}") from error
        return self._number(found)

    def _number(self, found: Any) -> float:
        try:
            number = float(found)
        except (TypeError, ValueError):
            raise DataError(f"--eval {self.name} returned {type(found).__name__}, not a number") from None
        if not math.isfinite(number):
            raise DataError(f"--eval {self.name} returned {number}; it must be finite, higher is better")
        return number


def _plain(value: Value) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.numpy() if isinstance(value, Tensor) else value
