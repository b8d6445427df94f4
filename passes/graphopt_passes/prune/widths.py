"""How many units of a group may stay: what kernels compute at a time.

Where time counts and can be measured, channels that Convs make are multiples of the block that their kernels
fill up to (``kernel_blocks``): fewer gain nothing, and cost accuracy all the same. Elsewhere they are
multiples of 4 at least, since other Convs leave ONNX Runtime's blocked layout and can take three times as
long (Torch-Pruning, issue 38).
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt_passes.axes import Group

_STEPS = ((64, 16), (32, 8), (8, 4))  # from so many channels on multiples of this
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def widths(group: Group, block: int | None = None) -> Sequence[int]:
    """The numbers of units that may stay, less than all, from the least on.

    Args:
        group: of channels.
        block: what Conv kernels compute at a time, where time counts; None if it does not, or is not known.
    """
    step = _step(group, block)
    return range(step, group.width, step)


def _step(group: Group, block: int | None) -> int:
    """1 if a unit is several channels, such as those of a head, or if channels are few."""
    first = group.producers[0]
    if (first.units >= 0).sum() != group.width:
        return 1
    usual = next((step for least, step in _STEPS if group.width >= least), 1)
    is_conv = first.port is not None and first.port.node.op_type in _CONVOLUTIONS
    return max(block, usual) if block is not None and is_conv else usual
