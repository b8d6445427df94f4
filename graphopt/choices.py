"""What options may be set to, and what a lower precision needs of samples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What a lower precision needs of samples.

    Attributes:
        calibrates: samples are kept for it to be fitted to.
        data: they must be the user's; else drawn ones would do.
        ranges: it chooses ranges of activations from statistics that can be saved.
        weights: only weights are rounded; drawn samples would not do to fit them to.
    """

    calibrates: bool
    data: bool
    ranges: bool = False
    weights: bool = False


PRECISIONS = {
    "int8": Needs(calibrates=True, data=True, ranges=True),
    "int8-dynamic": Needs(calibrates=False, data=False),
    "fp16": Needs(calibrates=True, data=False),
    "bf16": Needs(calibrates=True, data=False),
    "int8-weights": Needs(calibrates=True, data=False, weights=True),
    "int4-weights": Needs(calibrates=True, data=False, weights=True),
}
HALVES = ("fp16", "bf16")
ROUNDINGS = ("auto", "nearest", "hqq", "gptq", "awq")
BLOCK_SIZES = (16, 32, 64, 128, 256)
STORES = ("fp16", "bf16")
RANGES = ("auto", "minmax", "percentile", "kl", "mse")
CALIBRATION_MEMORY = 512_000_000
UNBOUNDED = "none"  # how reports spell a budget that bounds nothing
