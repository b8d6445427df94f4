"""freeze-initializers: take from callers the right to override weights, so that other passes may use them.

ONNX lets a caller feed any graph input, also one that has an initializer as its default. A runtime must then
keep every such weight as it is: no Conv-BatchNormalization fusion, no folding, no packing ahead of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.pipeline import Pass, Run

if TYPE_CHECKING:
    from graphopt.model import Model


@dataclass(frozen=True)
class FreezeInitializers(Pass):
    """Remove graph inputs that have an initializer. It changes the interface, so it runs only on request."""

    name = "freeze-initializers"

    def apply(self, model: Model, run: Run) -> bool:
        """Unlist every overridable initializer of the main graph."""
        graph, changed = model.ir.graph, False
        for value in list(graph.inputs):
            if value.is_initializer() and run.journal.admit(self.name, value.name or ""):
                graph.inputs.remove(value)
                changed = True
        return changed
