"""Defers the import of sympy, which onnx-ir needs only for arithmetic on symbolic dims (0.25 s of 0.35 s).

onnx-ir imports sympy at its top and reads it once, for a table in ``_symbolic_shapes``. Both modules are
given the standard library's lazy loader: they are executed at the first attribute that anybody reads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType


class _LazyFinder:
    """Finds the named modules as usual, once each, and wraps their loaders in LazyLoader."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        self.names.discard(fullname)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


if "onnx_ir" not in sys.modules and "sympy" not in sys.modules:
    sys.meta_path.insert(0, _LazyFinder({"sympy", "onnx_ir._symbolic_shapes"}))
