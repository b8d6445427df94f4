"""How many units of a group may stay: what kernels compute at a time.

ONNX Runtime's blocked Conv kernels take channels in blocks of 8 or 16 and leave the blocked layout where
channels are no multiple of 4, so that 63 channels take longer than 64 (Torch-Pruning reports a factor of 3).
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt_passes.axes import Group

_STEPS = ((64, 16), (32, 8), (8, 4))  # from so many channels on multiples of this


def widths(group: Group) -> Sequence[int]:
    """The numbers of units that may stay, less than all, from the least on."""
    step = _step(group)
    return range(step, group.width, step)


def _step(group: Group) -> int:
    """1 if a unit is several channels, such as those of a head, or if channels are few."""
    first = group.producers[0]
    if (first.units >= 0).sum() != group.width:
        return 1
    return next((step for least, step in _STEPS if group.width >= least), 1)
