"""Weights as halves, each converted once however many trial models hold it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.storage.spill import Spill
from graphopt_passes.halve.limits import limits
from graphopt_passes.halve.signatures import HALVES


@dataclass
class Weights:
    """Converted tensors of one model and its clones, which share theirs.

    Attributes:
        half: ``float16`` or ``bfloat16``.
        spill: where large ones lie.
    """

    half: str
    spill: Spill
    _found: dict[tuple[int, bool], tuple[ir.TensorProtocol, ir.TensorProtocol]] = field(default_factory=dict)

    def converted(self, tensor: ir.TensorProtocol, name: str, *, emulate: bool) -> ir.TensorProtocol:
        """A float tensor as half, or rounded to half but still float32, under a name.

        Raises:
            SystemRefusedError: the disk of the temporary folder is full.
        """
        key = id(tensor), emulate
        if key not in self._found:  # the tensor is kept, so that its id stays its own
            self._found[key] = tensor, self.spill.keep(self._made(tensor, name, emulate))
        return self._found[key][1]

    def _made(self, tensor: ir.TensorProtocol, name: str, emulate: bool) -> ir.TensorProtocol:
        data = tensor.numpy()
        if emulate:
            return ir.Tensor(np.asarray(limits(self.half).rounded(data)), name=name)
        with np.errstate(over="ignore"):
            half = data.astype(HALVES[self.half].numpy())
        return ir.Tensor(half, name=name, doc_string=tensor.doc_string)
