"""New constants of a model that is cut, each stored once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import graph as g
from graphopt.storage.spill import Spill


@dataclass
class Constants:
    """Makes initializers of the main graph, which all other graphs see.

    Attributes:
        model: gets them.
        spill: where large ones lie.
    """

    model: ir.Model
    spill: Spill
    names: g.Names = field(init=False)
    _parts: dict[Any, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = g.Names(self.model)

    def new(self, data: NDArray[Any] | ir.TensorProtocol, name: str) -> ir.Value:
        """A new initializer.

        Raises:
            SystemRefusedError: a large one is kept in a temporary file, and the disk is full.
        """
        fresh = self.names.fresh(name)
        tensor = self.spill.keep(ir.Tensor(data, name=fresh) if isinstance(data, np.ndarray) else data)
        tensor.name = fresh
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=fresh, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self.model.graph.register_initializer(value)
        return value

    def part(self, old: ir.Value, kept: dict[int, NDArray[np.int64]]) -> ir.Value:
        """What stays of a constant when only some elements of some axes do."""
        key = (old, *((axis, kept[axis].tobytes()) for axis in sorted(kept)))
        if key not in self._parts:
            tensor = g.constant(old)
            assert tensor is not None
            data = tensor.numpy()
            for axis, indices in kept.items():
                data = data.take(indices, axis)
            made = ir.Tensor(np.ascontiguousarray(data), dtype=tensor.dtype)
            self._parts[key] = self.new(made, old.name or "weight")
        return self._parts[key]
