"""Half precision as a GPU rounds it, in a float model: what judges a conversion without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from graphopt_passes.halve.units import Slot
from graphopt_passes.halve.writer import Writer


class Rounder(Writer):
    """Leaves a float model, in which what would be half is rounded to half by two Casts.

    ONNX Runtime has no kernels for most halves on CPUs, and computes in float between Casts of its own; but
    where these meet it drops them, so that a half model is not rounded between its nodes there. Nor does it
    run bfloat16. Casts that the model itself holds are kept.
    """

    emulate: ClassVar[bool] = True

    def _made_half(self, value: ir.Value, wanting: Sequence[Slot], others: Sequence[Slot]) -> None:
        if isinstance(value.type, ir.TensorType | None):  # items of sequences are rounded already
            self._cast(value, [*wanting, *others], self.dtype, ir.DataType.FLOAT)

    def _cast(self, value: ir.Value, slots: Sequence[Slot], *dtypes: ir.DataType) -> None:
        super()._cast(value, slots, self.dtype, ir.DataType.FLOAT)

    def _finish(self, nodes: Sequence[ir.Node]) -> None:
        """Everything stays of the type that it had."""
