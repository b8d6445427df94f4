"""The one place that writes output files: they appear whole, under their name, or not at all.

A file is written in a dot-named folder beside its destination, synced, and renamed. Killed in the middle,
only that folder remains; whoever writes the same destination a day later removes it.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from graphopt.errors import GraphoptError, SystemRefusedError, UsageError

Writer = Callable[[BinaryIO], None]

_ABANDONED_S = 24 * 3600  # some file systems do not tell others of a lock

# What copy_file_range answers where it cannot work: other device, unknown to the kernel or the file system.
_UNSUPPORTED = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


class Staged:
    """Files written beside their destination, usable at once, renamed on ``commit``.

    As a context manager it discards what was not committed.

    Attributes:
        path: where the main file is now: in the dot-named folder, after ``commit`` at its destination.
        others: the names of the other files, which lie beside the main one.
    """

    def __init__(self, destination: Path) -> None:
        """Make the dot-named folder.

        Raises:
            UsageError: see :func:`check_destination`.
            SystemRefusedError: the system refuses to create a folder there.
        """
        check_destination(destination)
        self.destination = destination
        self.others: list[str] = []
        self._home = destination.absolute().parent
        self._folder = self._home / f".{destination.name[:80]}.{secrets.token_hex(4)}.tmp"
        self.path = self._folder / destination.name
        with refusals(f"cannot write {destination}"):
            self._folder.mkdir()
            self._held = _held(self._folder)
        _sweep(self._home, f".{glob.escape(destination.name[:80])}.{'[0-9a-f]' * 8}.tmp")

    def free_name(self, suffix: str) -> str:
        """A name for a second file: the destination's with the suffix, or a longer one if that is taken."""
        name = self.destination.name + suffix
        if not os.path.lexists(self._home / name):
            return name
        return f"{self.destination.name}.{secrets.token_hex(4)}{suffix}"

    def write(self, write: Writer, name: str | None = None) -> None:
        """Write the main file, or another one that it refers to by ``name``.

        Raises:
            SystemRefusedError: the disk is full, or the system refuses otherwise; nothing is left behind.
        """
        try:
            target = self._folder / (name or self.destination.name)
            with refusals(f"cannot write {self.destination}"), open(target, "xb", 0) as file:
                write(file)
                os.fsync(file.fileno())
        except BaseException:
            self.discard()
            raise
        if name is not None:
            self.others.append(name)

    def commit(self) -> None:
        """Rename the files to their destination, the main one last; it is what makes them count.

        Raises:
            SystemRefusedError: the system refuses; nothing is left behind.
        """
        moved: list[Path] = []
        try:
            with refusals(f"cannot write {self.destination}"):
                for name in self.others:
                    os.rename(self._folder / name, self._home / name)
                    moved.append(self._home / name)
                _sync_folder(self._home)
                os.rename(self.path, self._home / self.destination.name)
        except BaseException:
            for path in moved:
                path.unlink(missing_ok=True)
            self.discard()
            raise
        self.path = self.destination
        with suppress(OSError):
            _sync_folder(self._home)
        self.discard()

    def discard(self) -> None:
        """Remove what was not committed."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def check_destination(path: Path) -> None:
    """Refuse a path that cannot become a file, before the work whose result it is to hold.

    Raises:
        UsageError: its folder does not exist, or it is no regular file: a folder, or a device such as
            /dev/null, which a rename would replace for the whole system.
    """
    home = path.absolute().parent
    if not home.is_dir():
        raise UsageError(f"cannot write {path}: the folder {home} does not exist")
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write {path}: it is a device or a pipe, not a regular file")


class refusals:  # noqa: N801 - reads as a statement
    """Turns the system's errors inside a ``with`` block into one line that starts with ``what``."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, GraphoptError):
            raise SystemRefusedError(f"{self._what}: {error.strerror or error}") from error


def _held(folder: Path) -> int | None:
    """A descriptor that locks a folder as long as this process lives; None if that cannot be."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(home: Path, pattern: str) -> None:
    """Remove the folders of processes that were killed: those of yesterday that nobody holds."""
    for folder in home.glob(pattern):
        with suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > _ABANDONED_S and (held := _held(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically.

    Raises:
        UsageError: see :func:`check_destination`.
        SystemRefusedError: the system refuses, for instance because the disk is full.
    """
    with Staged(path) as staged:
        staged.write(lambda file: write_all(file, [text.encode()]))
        staged.commit()


def write_all(file: BinaryIO, parts: Iterable[bytes | memoryview]) -> None:
    """Write every byte, however few the system takes at a time."""
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[file.write(view) :]


def copy_range(source: int, offset: int, length: int, file: BinaryIO) -> bool:
    """Copy a range from a descriptor to a file inside the kernel, past this process's memory.

    Returns:
        False, with nothing written, if the system or the file systems do not support it.
    """
    if not hasattr(os, "copy_file_range"):
        return False
    copied = 0
    while copied < length:
        try:
            step = os.copy_file_range(source, file.fileno(), length - copied, offset + copied)
        except OSError as error:
            if copied == 0 and error.errno in _UNSUPPORTED:
                return False
            raise
        if step == 0 and copied == 0:
            return False
        if step == 0:
            raise SystemRefusedError("the input was shortened while it was copied")
        copied += step
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
