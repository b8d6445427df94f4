"""Where the optimized model will run: an execution provider of ONNX Runtime and its optimization level."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from graphopt.errors import UsageError

Level = Literal["disabled", "basic", "extended", "all"]


@dataclass(frozen=True)
class Target:
    """One place to run a model.

    ``providers`` are ONNX Runtime's names in order of preference; ``level`` is the graph optimization level
    that the user's own session will have (ONNX Runtime's default is ``all``). As is its default, too,
    ``tf32`` lets CUDA round what it multiplies to 10 bits, and ``prepacks`` holds copies of weights in memory
    in the order in which kernels read them.
    """

    name: str
    providers: tuple[str, ...]
    level: Level = "all"
    tf32: bool = True
    prepacks: bool = True

    @property
    def exact(self) -> Target:
        """The same without CUDA's rounding of what is multiplied, which hides smaller errors."""
        return replace(self, tf32=False) if _CUDA in self.providers else self

    @property
    def provider_options(self) -> list[dict[str, str]]:
        """Of each provider, as ONNX Runtime takes them."""
        return [{} if self.tf32 or name != _CUDA else {"use_tf32": "0"} for name in self.providers]

    @classmethod
    def named(cls, name: str) -> Target:
        """The target called ``name``: ``cpu``, ``cuda`` or ``tensorrt``.

        Raises:
            UsageError: there is no such target.
        """
        if name not in TARGETS:
            raise UsageError(f"unknown target {name!r}; choose one of {', '.join(TARGETS)}")
        return TARGETS[name]


# ONNX Runtime wants the CPU last in every list: it runs what the others cannot.
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
TARGETS = {
    "cpu": Target("cpu", (_CPU,)),
    "cuda": Target("cuda", (_CUDA, _CPU)),
    "tensorrt": Target("tensorrt", ("TensorrtExecutionProvider", _CUDA, _CPU)),
}
CPU = TARGETS["cpu"]
# What correctness is judged on: the CPU, nothing rewritten by ONNX Runtime.
REFERENCE = Target("reference", (_CPU,), "disabled")
