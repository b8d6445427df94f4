"""What a provider's integer kernels take, as data: operator → how it may stand between DQ and Q.

Found by building each case and reading the graph that ONNX Runtime 1.32 really runs; the fusion audit checks
every model again, since another version may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["layer", "free", "mover", "scaler"]


@dataclass(frozen=True)
class Kernel:
    """How an operator computes on integers.

    Attributes:
        role: ``layer``: multiplies with weights; ``free``: any grid on any side; ``mover``: moves integers
            about, so its grid is the same on both sides; ``scaler``: the same integers, on another step.
        operands: how many leading inputs are activations; 0 stands for all.
        float_result: it may also give floats, so that nothing has to follow it.
        tail: operators that vanish behind it when its result's grid saturates as they do.
        needs: attributes that have kernels only with these values.
        since: first opset of the default domain with such a kernel.
    """

    role: Role
    operands: int = 1
    float_result: bool = False
    tail: tuple[str, ...] = ()
    needs: tuple[tuple[str, tuple[object, ...]], ...] = ()
    since: int = 13


_SATURATING = ("Relu", "Clip")
_CPU: dict[str, Kernel] = {
    "Conv": Kernel("layer", tail=_SATURATING),
    "Gemm": Kernel("layer", float_result=True, tail=_SATURATING, needs=(("alpha", (1.0,)), ("beta", (1.0,)))),
    "MatMul": Kernel("layer", operands=2, float_result=True, tail=_SATURATING),
    "Add": Kernel("free", operands=0, tail=_SATURATING),
    "Mul": Kernel("free", operands=0, tail=_SATURATING),
    "Concat": Kernel("free", operands=0),
    "AveragePool": Kernel("free"),
    "GlobalAveragePool": Kernel("free"),
    "LeakyRelu": Kernel("free"),
    "Sigmoid": Kernel("free"),
    "Softmax": Kernel("free"),
    "MaxPool": Kernel("mover", needs=(("storage_order", (0,)),)),
    "Reshape": Kernel("mover"),
    "Transpose": Kernel("mover"),
    "Slice": Kernel("mover"),
    "Flatten": Kernel("mover"),
    "Squeeze": Kernel("mover"),
    "Unsqueeze": Kernel("mover"),
    "Split": Kernel("mover"),
    "DepthToSpace": Kernel("mover"),
    "Resize": Kernel("mover", needs=(("mode", ("nearest",)),)),
}

# TensorRT fuses by itself what follows; it wants pairs before layers only (explicit quantization).
_TENSORRT: dict[str, Kernel] = {
    "Conv": Kernel("layer", float_result=True),
    "Gemm": Kernel("layer", float_result=True),
    "MatMul": Kernel("layer", operands=2, float_result=True),
}

SCALER = Kernel("scaler")
"""Multiplication with or division by a positive constant: no kernel at all, for targets whose Mul has one."""

KERNELS: dict[str, dict[str, Kernel]] = {"cpu": _CPU, "tensorrt": _TENSORRT}
"""Target → operator of the default domain → its kernel."""


@dataclass(frozen=True)
class Style:
    """How a target wants its integers.

    Attributes:
        signed: activations are int8 rather than uint8.
        symmetric: their zero points are 0.
        integer_bias: biases are int32 rather than floats.
        channel_steps: activations may be dequantized with one step per channel.
    """

    signed: bool
    symmetric: bool
    integer_bias: bool
    channel_steps: bool


# x64 kernels fuse uint8 everywhere, int8 only in chains; a Relu needs a zero point at the end of the range.
STYLES: dict[str, Style] = {
    "cpu": Style(signed=False, symmetric=False, integer_bias=True, channel_steps=True),
    "tensorrt": Style(signed=True, symmetric=True, integer_bias=False, channel_steps=False),
}
"""Target → style."""

UNFIT = {
    "cuda": "on CUDA, ONNX Runtime computes quantized models on floats, with conversions around them",
}
"""Targets where int8 is pointless, and why."""

DEFAULTS: dict[str, object] = {"alpha": 1.0, "beta": 1.0, "storage_order": 0, "mode": "nearest"}
"""Values of the attributes above when a node does not state them."""
