"""Which inputs and outputs of ONNX Runtime's own operators may be half, since onnx has no schema for them.

One letter for each input and output, as in the schemas of ONNX Runtime 1.32: equal upper case letters are
equal types that may be float16 or float; ``f`` is float only; ``.`` is no float, or its type is none of the
two. The last letter of the inputs stands for all that follow.
"""

from __future__ import annotations

DOMAIN = "com.microsoft"

FORMS: dict[str, tuple[str, str]] = {
    "Attention": ("TTT.TT.", "TT"),
    "BiasAdd": ("TTT", "T"),
    "BiasGelu": ("TT", "T"),
    "BiasSoftmax": ("TT", "T"),
    "BiasSplitGelu": ("TT", "T"),
    "ComplexMul": ("TT", "T"),
    "ComplexMulConj": ("TT", "T"),
    "ConvTransposeWithDynamicPads": ("TT.T", "T"),
    "DecoderMaskedMultiHeadAttention": ("TTT.TTT...T", "TTT"),
    "EmbedLayerNormalization": ("..TTTTT..", "T.T"),
    "ExpandDims": ("T.", "T"),
    "FastGelu": ("TT", "T"),
    "FusedConv": ("TTTT", "T"),
    "FusedGemm": ("TTT", "T"),
    "FusedMatMul": ("TT", "T"),
    "FusedMatMulActivation": ("TT", "T"),
    "GatedRMSNorm": ("TTT", "T"),
    "GatedRelativePositionBias": ("TTTTTT.", "T"),
    "GatherBlockQuantized": ("..T.", "T"),
    "GatherND": ("T.", "T"),
    "Gelu": ("T", "T"),
    "GemmFastGelu": ("TTT", "T"),
    "GroupNorm": ("TMM", "T"),
    "GroupQueryAttention": ("TTTCC..TT.TTffTT.", "TCCT"),
    "Inverse": ("T", "T"),
    "MatMulBnb4": ("T.T", "T"),
    "MatMulIntegerToFloat": ("..TT..T", "T"),
    "MatMulNBits": ("T.TS.T", "T"),
    "MoE": ("TTTTTTTT", "T"),
    "MultiHeadAttention": ("TTTT.TTT..", "TTT"),
    "NhwcConv": ("TTT", "T"),
    "NhwcFusedConv": ("TTTT", "T"),
    "PackedAttention": ("TTT..T", "T"),
    "PackedMultiHeadAttention": ("TTTT..T", "T"),
    "Pad": ("T.T", "T"),
    "QAttention": ("..TTT...T", "TT"),
    "QuickGelu": ("T", "T"),
    "RelativePositionBias": ("T..", "T"),
    "RemovePadding": ("T.", "T..."),
    "RestorePadding": ("T.", "T"),
    "RotaryEmbedding": ("T.TT", "T"),
    "SkipGroupNorm": ("TMMTT", "TT"),
    "SkipLayerNormalization": ("TTTTT", "TffT"),
    "SkipSimplifiedLayerNormalization": ("TTTT", "TffT"),
    "SwiGLU": ("TT", "T"),
    "TransposeMatMul": ("TT", "T"),
    "Trilu": ("T.", "T"),
    "UnfoldTensor": ("T", "T"),
}
"""Operator → letters of its inputs and outputs."""

NO_BFLOAT16 = frozenset(
    {
        "BiasAdd", "BiasSoftmax", "BiasSplitGelu", "ComplexMul", "ComplexMulConj", "ExpandDims",
        "ConvTransposeWithDynamicPads", "DecoderMaskedMultiHeadAttention", "EmbedLayerNormalization",
        "FusedConv", "FusedGemm", "GatedRelativePositionBias", "GatherND", "GroupNorm", "Inverse",
        "MatMulIntegerToFloat", "NhwcConv", "NhwcFusedConv", "PackedAttention", "PackedMultiHeadAttention",
        "Pad", "QAttention", "RelativePositionBias", "RemovePadding", "RestorePadding", "SkipGroupNorm",
    }
)  # fmt: skip
"""Those of them whose ``T`` cannot be bfloat16."""
