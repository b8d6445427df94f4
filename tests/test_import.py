"""Importing graphopt is cheap, and what is deferred still works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import graphopt


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    home = Path(__file__).parent.parent
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=home).stdout.strip()


def test_importing_graphopt_imports_no_heavy_module() -> None:
    heavy = "{'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'rich', 'typer'}"
    assert run_python(f"import graphopt, sys; print({heavy} & set(sys.modules))") == "set()"


def test_sympy_waits_until_somebody_computes_with_dims() -> None:
    code = """
import graphopt.model, onnx_ir, sys
ran = lambda: "Symbol" in object.__getattribute__(sys.modules["sympy"], "__dict__")
before = ran()
dim = onnx_ir.SymbolicDim("N") * 2 + 1
print(before, str(dim), ran(), dim.evaluate({"N": 3}))
"""
    assert run_python(code) == "False 2*N + 1 True 7"


@pytest.mark.parametrize("first", ["import sympy", "import onnx_ir", "from sympy import Symbol"])
def test_others_may_import_sympy_before_or_after(first: str) -> None:
    for order in (f"{first}\nimport graphopt.model", f"import graphopt.model\n{first}"):
        assert run_python(f"{order}\nfrom sympy import Symbol\nprint(Symbol('x') + 1)") == "x + 1"


@pytest.mark.parametrize("name", graphopt.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(graphopt, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = graphopt.nothing


def test_only_the_outermost_layer_imports_the_console() -> None:
    package = Path(graphopt.__file__).parent
    outside = [path for path in package.rglob("*.py") if path.parent != package / "console"]
    users = {path.name for path in outside if "graphopt.console" in path.read_text(encoding="utf-8")}
    assert users == {"__main__.py"}
