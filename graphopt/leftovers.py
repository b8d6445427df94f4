"""What a model leaves behind when its file is replaced: data files that nobody reads any more."""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from graphopt.errors import GraphoptError
from graphopt.model import Model

_MODELS = (".onnx", ".ort", ".pb")


@dataclass(frozen=True)
class Leftovers:
    """The data files of the model at a path, looked up before another model replaces it.

    Attributes:
        path: the model's file.
        data_files: what it refers to.
        linked: whether the file has other names, which go on referring to them.
    """

    path: Path
    data_files: frozenset[Path] = frozenset()
    linked: bool = False

    @classmethod
    def of(cls, path: Path) -> Leftovers:
        """Those of the model at a path; none if there is no model that can be read."""
        try:
            found = Model.load(path).data_files if path.is_file() else frozenset()
        except GraphoptError:
            return cls(path)
        return cls(path, found, bool(found) and (path.is_symlink() or path.stat().st_nlink > 1))

    def remove(self, needed: Collection[Path] = ()) -> Iterator[str]:
        """Remove them once the model is replaced, if that is safe; says of each what was done.

        Safe is a file beside the model that is called as graphopt calls it, and that no other model in the
        folder mentions; ``needed`` are files that somebody still reads.
        """
        for file in sorted(self.data_files):
            if not file.is_file():
                continue
            reason = self._needed(file, needed)
            if reason is None:
                try:
                    file.unlink()
                except OSError as error:
                    reason = f"the system does not remove it: {error.strerror}"
            yield (
                f"removed '{file.name}', the weights of the file that was replaced"
                if reason is None
                else f"'{file}', the weights of the file that was replaced, is still there: {reason}"
            )

    def _needed(self, file: Path, needed: Collection[Path]) -> str | None:
        """Why a file stays."""
        if any(other.exists() and other.samefile(file) for other in needed):
            return "the input needs it"
        if self.linked:
            return "the model has other names"
        if file.is_symlink() or file.parent.resolve() != self.path.parent.resolve():
            return "it lies elsewhere"
        if not re.fullmatch(rf"{re.escape(self.path.name)}(\.[0-9a-f]{{8}})?\.data", file.name):
            return "graphopt did not make it"
        others = (p for p in file.parent.iterdir() if p.suffix in _MODELS and p.name != self.path.name)
        user = next((other for other in others if other.is_file() and _mentions(other, file.name)), None)
        return f"'{user.name}' mentions it" if user is not None else None


def _mentions(model: Path, name: str) -> bool:
    """Whether the bytes of a file hold a name; of one that cannot be read it is supposed."""
    try:
        with open(model, "rb") as file:
            if not model.stat().st_size:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return data.find(name.encode()) >= 0
    except OSError:
        return True
