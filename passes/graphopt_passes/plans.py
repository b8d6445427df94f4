"""Which passes run, in which order. The pipeline repeats a plan until a whole round changes nothing."""

from __future__ import annotations

PLANS: dict[str, tuple[str, ...]] = {
    "default": (
        "eliminate-dead-code",  # first: nothing below spends time on what nobody uses
        "eliminate-identity",  # before folding: chains become visible, Identity of a weight needs no session
        "simplify-shapes",  # makes static shape computations constant, so that folding sees their consumers
        "merge-chains",
        "merge-qdq",  # after both: what stood between two pairs is gone
        "fold-constants",
        "decide-conditions",  # after shapes are simplified, right before the branches are inlined
        "inline-constant-if",  # after folding, which finds the conditions that are constant
        "sum-to-add",  # before the fusions, which know Add
        "fuse-conv-bn",  # before conv-affine: BatchNormalization has its own, more accurate algebra
        "fuse-conv-affine",
        "div-to-mul",  # after it: what weights have taken in need not be rewritten
        "slices-to-space-to-depth",
        "matmul-add-to-gemm",
        "eliminate-common-subexpressions",  # late: it makes values shared, and shared values block fusion
        "deduplicate-initializers",
        "eliminate-dead-code",
    ),
}
