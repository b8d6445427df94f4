"""The documentation's Python blocks run, and the options that it mentions exist."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from graphopt.console.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONAL = {"torch", "sklearn", "skl2onnx", "keras"}
PAGES_WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text()]


def name_of(page: Path) -> str:
    return page.name


def blocks(page: Path) -> list[tuple[int, str]]:
    """Each Python block of a page and the line on which it begins."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M)
    return [(text.count("\n", 0, block.start(1)), block[1]) for block in found]


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=name_of)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns(".cache"))
    monkeypatch.chdir(tmp_path)
    module = ModuleType("documented")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    missing = set()
    for line, block in blocks(page):
        try:
            exec(compile("\n" * line + block, str(page), "exec"), module.__dict__)
        except ModuleNotFoundError as error:
            assert error.name in OPTIONAL
            missing.add(error.name)
    if missing:
        pytest.skip(f"not all examples ran: {', '.join(sorted(missing))} not installed")


def known_options() -> set[str]:
    group = typer.main.get_command(app)
    commands = [group, *group.commands.values()]
    return {option for command in commands for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_that_are_mentioned_exist(page):
    foreign = {"--check", "--help"}  # ruff's, and every command's
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text()))
    assert mentioned <= known_options() | foreign


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
