"""The rewrite passes that ship with graphopt: one idea per file, its algebra on top."""

from __future__ import annotations

_HERE = "graphopt_passes"

PASSES: dict[str, tuple[str, str]] = {
    "eliminate-dead-code": (
        f"{_HERE}.exact.eliminate_dead_code:EliminateDeadCode",
        "remove nodes, initializers and functions that no output needs",
    ),
    "eliminate-identity": (
        f"{_HERE}.exact.eliminate_identity:EliminateIdentity",
        "remove operators that return their input: Identity, Dropout in inference, Casts to the same type, …",
    ),
    "simplify-shapes": (
        f"{_HERE}.exact.simplify_shapes:SimplifyShapes",
        "replace shape computations by constants where the shape is known, without fixing dynamic dims",
    ),
    "merge-chains": (
        f"{_HERE}.exact.merge_chains:MergeChains",
        "merge neighbouring Transposes, Reshapes, Squeezes, Casts and Slices",
    ),
    "merge-qdq": (
        f"{_HERE}.exact.merge_qdq:MergeQdq",
        "remove quantization of what was dequantized from the same grid",
    ),
    "fold-constants": (
        f"{_HERE}.exact.fold_constants:FoldConstants",
        "evaluate what depends on constants only, within a budget of file growth",
    ),
    "decide-conditions": (
        f"{_HERE}.exact.decide_conditions:DecideConditions",
        "make an If's condition constant when the model fails with any other value of it",
    ),
    "inline-constant-if": (
        f"{_HERE}.exact.inline_constant_if:InlineConstantIf",
        "replace an If whose condition is constant by the branch that it takes",
    ),
    "sum-to-add": (
        f"{_HERE}.exact.sum_to_add:SumToAdd",
        "turn Sums of two values into Add, which ONNX Runtime fuses more often",
    ),
    "fuse-conv-bn": (
        f"{_HERE}.fuse.conv_bn:FuseConvBn",
        "merge BatchNormalization into Conv, ConvTranspose and Gemm weights",
    ),
    "fuse-conv-affine": (
        f"{_HERE}.fuse.conv_affine:FuseConvAffine",
        "merge constant Mul, Add, Sub, Div and zero Pad into Conv weights and attributes",
    ),
    "div-to-mul": (
        f"{_HERE}.exact.div_to_mul:DivToMul",
        "multiply by the reciprocals of constant powers of two instead of dividing",
    ),
    "slices-to-space-to-depth": (
        f"{_HERE}.fuse.slices_to_space_to_depth:SlicesToSpaceToDepth",
        "replace concatenated strided slices of an image by SpaceToDepth",
    ),
    "matmul-add-to-gemm": (
        f"{_HERE}.fuse.matmul_add_to_gemm:MatMulAddToGemm",
        "turn two-dimensional MatMul + Add into Gemm",
    ),
    "eliminate-common-subexpressions": (
        f"{_HERE}.exact.eliminate_common_subexpressions:EliminateCommonSubexpressions",
        "compute equal deterministic nodes once",
    ),
    "deduplicate-initializers": (
        f"{_HERE}.exact.deduplicate_initializers:DeduplicateInitializers",
        "store equal weights once",
    ),
    "equalize-channels": (
        f"{_HERE}.quantize.equalize:EqualizeChannels",
        "move scales between neighbouring layers until the ranges of their channels are alike (for int8)",
    ),
    "quantize-dynamic": (
        f"{_HERE}.quantize.dynamic:QuantizeDynamic",
        "compute products with constant weights on integers, ranges found in each run (lossy)",
    ),
    "store-half": (
        f"{_HERE}.weights.store_half:StoreHalf",
        "store weights in half precision, widened when the model is loaded (lossy)",
    ),
    "raise-opset": (
        f"{_HERE}.exact.raise_opset:RaiseOpset",
        "write the model in a newer opset, such as one that quantizes per channel (only on request)",
    ),
    "freeze-initializers": (
        f"{_HERE}.exact.freeze_initializers:FreezeInitializers",
        "make initializers that are also graph inputs constant (only on request)",
    ),
}
"""Name → (module:class, one line for users); modules are imported when a pass is used."""

PRECISIONS: dict[str, str] = {
    "int8": f"{_HERE}.quantize.static:lower",
    "int8-dynamic": f"{_HERE}.quantize.dynamic_search:lower",
    "fp16": f"{_HERE}.halve.lower:fp16",
    "bf16": f"{_HERE}.halve.lower:bf16",
    "int8-weights": f"{_HERE}.weights.lower:int8",
    "int4-weights": f"{_HERE}.weights.lower:int4",
}
"""Name of ``--precision`` → what lowers it, a :class:`graphopt.precision.Lowering`."""

PRUNINGS: dict[str, str] = {
    "channels": f"{_HERE}.prune.channels:prune",
    "rank": f"{_HERE}.compress.rank:prune",
    "circulant": f"{_HERE}.compress.circulant:prune",
    "sparsity": f"{_HERE}.sparsify.stage:prune",
    "cluster": f"{_HERE}.compress.cluster:prune",
}
"""Option of pruning → what does it, a :class:`graphopt.precision.Lowering`."""

STORES: dict[str, str] = {
    "fp16": f"{_HERE}.weights.store:fp16",
    "bf16": f"{_HERE}.weights.store:bf16",
}
"""Name of ``--store`` → what stores weights so, a :class:`graphopt.precision.Lowering`."""
