"""What a recurrent layer multiplies with at each step: its input, and the state that the step before gave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.accumulators import Array, check_finite
from graphopt.runtime.pairs import Pairs

_MOST = 1 << 13  # rows of one array: of all sequences the same steps, evenly spread


@dataclass(frozen=True)
class Steps:
    """Sums over rows [xₜ, hₜ₋₁], of the layer's input and of all its states; nothing is given beside them.

    What the state is before the first step the layer does not give: zeros, or an operand of it, and then the
    first step is left out.

    Attributes:
        inputs: numbers of xₜ.
        hidden: numbers of hₜ₋₁.
        backward: for each direction whether it runs from the last step to the first.
        from_zero: whether states begin with zeros.
        held_every: every so many-th array only judges what is fitted to the others; 0: none does.
    """

    inputs: int
    hidden: int
    backward: tuple[bool, ...]
    from_zero: bool
    held_every: int = 0

    def start(self) -> Pairs:
        """See :class:`Pairs`."""
        return Pairs(self)

    @property
    def groups(self) -> int:
        """Directions."""
        return len(self.backward)

    @property
    def columns(self) -> int:
        """Numbers of a row."""
        return self.inputs + self.hidden

    @property
    def channels(self) -> int:
        """Numbers that are given beside them."""
        return 0

    def read(self, x: Array, y: Array, turn: int) -> tuple[Array, Array]:
        """Rows [directions, n, columns], and as many of no numbers.

        Args:
            x: [time, batch, inputs].
            y: [time, directions, batch, hidden].
            turn: means nothing, as rows are not picked at random.

        Raises:
            ValueError: one of them holds NaN or infinity, or they do not fit the layer.
        """
        if x.ndim != 3 or y.shape != (x.shape[0], self.groups, x.shape[1], self.hidden):
            raise ValueError(f"a recurrent layer gives {y.shape} for {x.shape}")
        rows = np.stack([self._rows(x, y[:, i], back) for i, back in enumerate(self.backward)])
        total = rows.sum(axis=1, dtype=np.float64)
        check_finite(total, total)
        return rows, np.zeros((*rows.shape[:2], 0), rows.dtype)

    def _rows(self, x: Array, states: Array, backward: bool) -> Array:
        if backward:
            x, states = x[::-1], states[::-1]
        apart = -(-x.shape[1] // _MOST) or 1  # sequences
        x, states = x[:, ::apart], states[:, ::apart]
        steps = self._steps(*x.shape[:2])
        before = states[steps - 1]
        before[steps == 0] = 0
        return np.concatenate([x[steps], before], axis=2).reshape(-1, self.columns)

    def _steps(self, time: int, batch: int) -> NDArray[np.int64]:
        """As many as fit with all sequences of a batch; of few not the first, whose state tells little."""
        steps = np.arange(0 if self.from_zero else 1, time)
        every = max(-(-len(steps) // (_MOST // max(batch, 1))), 1)
        return steps[every // 2 :: every]
