"""IR 3 models list every initializer as an input; passes see them as the constants that they are.

Before IR version 4 a model had to list its initializers among its inputs, and ONNX Runtime treats those as
constants. While passes run they are unlisted and the model counts as IR 4. If no initializer came or went,
the model is put back as it was; otherwise it stays IR 4, which the journal says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.journal import Journal

if TYPE_CHECKING:
    from graphopt.model import Model

FIRST_WITH_CONSTANTS = 4


@contextmanager
def as_ir4(model: Model, journal: Journal) -> Iterator[None]:
    """Within the block, whose passes may replace ``model.ir``, an IR 3 model is an equal IR 4 model."""
    if model.ir.ir_version >= FIRST_WITH_CONSTANTS:
        yield
        return
    version, inputs = model.ir.ir_version, list(model.ir.graph.inputs)
    initializers = set(model.ir.graph.initializers)
    to_ir4(model)
    yield
    graph = model.ir.graph
    if set(graph.initializers) == initializers:
        known = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
        _set_inputs(graph, [known[value.name] for value in inputs])
        model.ir.ir_version = version
    else:
        journal.note(
            f"IR version {version} became {FIRST_WITH_CONSTANTS}: initializers are no longer listed as inputs"
        )


def to_ir4(model: Model) -> None:
    """Make an IR 3 model an equal IR 4 model, in place."""
    if model.ir.ir_version < FIRST_WITH_CONSTANTS:
        graph = model.ir.graph
        _set_inputs(graph, [value for value in graph.inputs if not value.is_initializer()])
        model.ir.ir_version = FIRST_WITH_CONSTANTS


def _set_inputs(graph: ir.Graph, inputs: list[ir.Value]) -> None:
    graph.inputs.clear()
    graph.inputs.extend(inputs)
