"""The ONNX graph-rewriting compiler whose output is verified, never slower, and explained.

Importing graphopt costs nothing: a public name imports its module at its first use.
"""

from __future__ import annotations

from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from graphopt import _lazy as _lazy

if TYPE_CHECKING:
    from graphopt.compiler import Result, optimize
    from graphopt.errors import GraphoptError
    from graphopt.model import Model
    from graphopt.pipeline import Pass, Pipeline
    from graphopt.report import Report
    from graphopt.rewrite import Rule, rule
    from graphopt.target import Target

__version__ = "0.1.0"

_HOMES = {
    "GraphoptError": "errors",
    "Model": "model",
    "Pass": "pipeline",
    "Pipeline": "pipeline",
    "Report": "report",
    "Result": "compiler",
    "Rule": "rewrite",
    "Target": "target",
    "optimize": "compiler",
    "rule": "rewrite",
}

__all__ = ["GraphoptError", "Model", "Pass", "Pipeline", "Report", "Result", "Rule", "Target", "load"]
__all__ += ["optimize", "rule"]


def load(path: str | PathLike[str]) -> Model:
    """Load a model without loss, its weights memory-mapped; see :meth:`graphopt.model.Model.load`."""
    from graphopt.model import Model

    return Model.load(path)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    return getattr(import_module(f"graphopt.{_HOMES[name]}"), name)
