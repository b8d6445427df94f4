"""IR 3 models list every initializer as an input; passes see them as the constants that they are.

Before IR version 4 a model had to list its initializers among its inputs, and ONNX Runtime treats those as
constants. While passes run they are unlisted and the model counts as IR 4. If no initializer came or went,
the model is put back as it was; otherwise it stays IR 4, which the journal says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from graphopt.journal import Journal

FIRST_WITH_CONSTANTS = 4


@contextmanager
def as_ir4(model: ir.Model, journal: Journal) -> Iterator[None]:
    """Within the block an IR 3 model is an equal IR 4 model."""
    if model.ir_version >= FIRST_WITH_CONSTANTS:
        yield
        return
    version, inputs = model.ir_version, list(model.graph.inputs)
    initializers = set(model.graph.initializers)
    _set_inputs(model.graph, [value for value in inputs if not value.is_initializer()])
    model.ir_version = FIRST_WITH_CONSTANTS
    yield
    if set(model.graph.initializers) == initializers:
        _set_inputs(model.graph, inputs)
        model.ir_version = version
    else:
        journal.note(
            f"IR version {version} became {FIRST_WITH_CONSTANTS}: initializers are no longer listed as inputs"
        )


def _set_inputs(graph: ir.Graph, inputs: list[ir.Value]) -> None:
    graph.inputs.clear()
    graph.inputs.extend(inputs)
