"""Two models with their common inner tensors as outputs, to find where they first differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.model import Model
from graphopt.storage.files import Staged

if TYPE_CHECKING:
    import onnx_ir as ir


def exposed(original: Path, candidate: Path, folder: Path) -> list[Staged]:
    """Both models with every tensor that both main graphs name as an output, in the original's order.

    Raises:
        GraphoptError: a model cannot be loaded or written.
    """
    models = [Model.load(path).clone() for path in (original, candidate)]
    inner = [_inner(model.ir.graph) for model in models]
    common = [name for name in inner[0] if name in inner[1]]
    for model, values in zip(models, inner, strict=True):
        model.ir.graph.outputs[:] = [values[name] for name in common]
    return [model.stage(folder / f"{index}.onnx") for index, model in enumerate(models)]


def _inner(graph: ir.Graph) -> dict[str, ir.Value]:
    return {value.name: value for node in graph for value in node.outputs if value.name}
