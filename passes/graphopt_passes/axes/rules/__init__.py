"""What operators do to axes, by family; importing this fills the tables ``RULES`` and ``EDITS``."""

from graphopt_passes.axes.rules import (
    control_flow,
    convolution,
    elementwise,
    matmul,
    movement,
    normalization,
    pooling,
    quantized,
    recurrent,
    reduction,
    reshape,
    selection,
    sizes,
)
from graphopt_passes.axes.site import RULES

__all__ = [
    "RULES",
    "control_flow",
    "convolution",
    "elementwise",
    "matmul",
    "movement",
    "normalization",
    "pooling",
    "quantized",
    "recurrent",
    "reduction",
    "reshape",
    "selection",
    "sizes",
]
